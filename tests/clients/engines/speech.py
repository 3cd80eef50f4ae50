"""Piper behind `/v1/audio/speech`: its own server speaks another API. Arguments: PORT VOICE.onnx"""

import http.server
import json
import struct
import sys

import piper

VOICE = piper.PiperVoice.load(sys.argv[2])
# A stream's length is not known when it begins.
UNKNOWN = 0xFFFFFFFF


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        is_health = self.path == "/health"
        self.whole(200 if is_health else 404, {"status": "ok"} if is_health else {"error": "not here"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        form = asked.get("response_format", "wav")
        if form not in ("wav", "pcm"):
            error = {"message": f"`{form}` is not made here: `wav`, `pcm`", "type": "invalid_request_error"}
            return self.whole(400, {"error": error | {"param": "response_format", "code": None}})
        self.send_response(200)
        self.send_header("content-type", "audio/wav" if form == "wav" else "audio/pcm")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if form == "wav":
            self.piece(header(VOICE.config.sample_rate))
        # A sentence at a time.
        for spoken in VOICE.synthesize(asked["input"]):
            self.piece(spoken.audio_int16_bytes)
        self.wfile.write(b"0\r\n\r\n")

    def piece(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def whole(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def header(rate):
    told = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", UNKNOWN, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return told + struct.pack("<4sI", b"data", UNKNOWN)


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
