"""An engine that calls the first tool it is offered: the small model does not. Argument: the port."""

import http.server
import json
import sys

ARGUMENTS = {"city": "Paris"}


def chat(body):
    call = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(ARGUMENTS)}
    calls = [{"id": "call_1", "type": "function", "function": call}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body["model"]}
    return about | {"choices": [choice], "usage": usage}


def messages(body):
    call = {"type": "tool_use", "id": "toolu_1", "name": body["tools"][0]["name"], "input": ARGUMENTS}
    about = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"]}
    usage = {"input_tokens": 1, "output_tokens": 1}
    return about | {"content": [call], "stop_reason": "tool_use", "stop_sequence": None, "usage": usage}


def responses(body):
    name = body["tools"][0]["name"]
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name}
    call |= {"arguments": json.dumps(ARGUMENTS), "status": "completed"}
    about = {"id": "resp_1", "object": "response", "created_at": 0, "model": body["model"]}
    about |= {"status": "completed", "parallel_tool_calls": True, "tool_choice": "required"}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    usage |= {"input_tokens_details": {"cached_tokens": 0}}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}
    return about | {"tools": body["tools"], "output": [call], "usage": usage}


PATHS = {"/v1/chat/completions": chat, "/v1/messages": messages, "/v1/responses": responses}


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        models = {"object": "list", "data": [{"id": "tools", "object": "model"}]}
        self.answer(models if self.path == "/v1/models" else {"status": "ok"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.answer(PATHS[self.path.partition("?")[0]](body))

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
