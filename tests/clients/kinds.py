"""The clients, how each is started, and what is known to be its own doing."""

import dataclasses
import json
import os
import subprocess


@dataclasses.dataclass(frozen=True)
class Kind:
    """One client in one language."""

    # As in the document.
    name: str
    # Its file below tests/sdk.
    file: str
    # The package whose version is told; its folder among the installed ones follows.
    package: str
    # The slot that it asks in place of another.
    slots: dict = dataclasses.field(default_factory=dict)
    # The behaviours that make sense for it; all if empty.
    only: tuple = ()
    # Whether it asks the engines too that are slow, and the same for all that speak one API.
    works: bool = False
    # Whether it comes to the listener for Ollama's clients.
    ollama: bool = False
    # Whether it cannot say that a tool has to be called.
    called: bool = False
    # Whether its API is one whose streams are continued.
    resumed: bool = True
    # What the client or the engine does that slotd cannot mend, by behaviour: a sentence each.
    known: dict = dataclasses.field(default_factory=dict)

    def does(self, behaviour):
        if behaviour.startswith(("worker-", "mlx-", "llama-")):
            return self.works
        return not self.only or behaviour in self.only

    def slot(self, slot):
        """The name under which it asks a slot."""
        return "called" if self.called and slot == "tools" else self.slots.get(slot, slot)

    def command(self, tools, sdk):
        if self.file.endswith(".mjs"):
            return ["node", sdk / self.file, tools / "node" / "node_modules"]
        return [tools / f"py-{self.folder}" / "bin" / "python", sdk / self.file]

    def version(self, tools):
        """Asks what is installed."""
        if self.file.endswith(".mjs"):
            about = tools / "node" / "node_modules" / self.package / "package.json"
            return json.loads(about.read_text())["version"]
        ask = f"import importlib.metadata as it; print(it.version({self.package!r}))"
        python = tools / f"py-{self.folder}" / "bin" / "python"
        return subprocess.check_output([python, "-c", ask], text=True).strip()

    @property
    def folder(self):
        return self.file.removeprefix("try_").rpartition(".")[0]

    def environment(self, scratch):
        """Nothing of the caller's that a client might read, and nothing told about its use."""
        kept = {"PATH": os.environ["PATH"], "HOME": str(scratch), "LANG": "C.UTF-8"}
        kept |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
        return kept | {"HF_HUB_DISABLE_TELEMETRY": "1", "INSTRUCTOR_TELEMETRY": "0"}


# No server can tell that nobody reads any more while the connection stands.
LINGERS = {
    "leaves": "breaking off the loop over its stream did not close the connection within 10 s, and while "
    "that stands the engine goes on",
}
UNFORMED = {
    "schema": "llama-server ignores `text.format` on `/v1/responses`, asked directly too: the model's "
    "own text comes, and the client finds that it is no JSON",
}
UNTOLD = {
    "schema": "the client sends the schema as TGI wants it (`value` of a `json_object`), and llama-server "
    "does not look there: JSON comes, of another form",
}
UNTYPED = {
    "stream": "llama-server's `response.created` has no `created_at` and no `model`, asked directly too: the "
    "client takes no event without them",
}
RANKING = {"chat": "rerank", "cold": "rerank"}
KINDS = [
    Kind("openai (Python)", "try_openai.py", "openai", works=True),
    Kind("openai (Node)", "try_openai.mjs", "openai", works=True),
    Kind("anthropic (Python)", "try_anthropic.py", "anthropic", resumed=False),
    Kind("anthropic (Node)", "try_anthropic.mjs", "@anthropic-ai/sdk", resumed=False),
    Kind("litellm", "try_litellm.py", "litellm", known=LINGERS),
    Kind("langchain-openai", "try_langchain.py", "langchain-openai"),
    Kind("@langchain/openai", "try_langchain.mjs", "@langchain/openai"),
    Kind("ai + @ai-sdk/openai-compatible", "try_vercel.mjs", "ai"),
    Kind("ai + @ai-sdk/openai", "try_vercel_openai.mjs", "@ai-sdk/openai"),
    Kind(
        "the same, responses", "try_vercel_responses.mjs", "@ai-sdk/openai", resumed=False,
        only=("plain", "stream", "tools", "schema", "cold", "killed-before", "unknown-model", "bad-key"),
        known=UNFORMED | UNTYPED,
    ),
    Kind("ollama (Python)", "try_ollama.py", "ollama", ollama=True, called=True),
    Kind("ollama (Node)", "try_ollama.mjs", "ollama", ollama=True, called=True),
    Kind("instructor", "try_instructor.py", "instructor"),
    Kind("llm", "try_llm.py", "llm", called=True, known=LINGERS),
    Kind("openai-agents", "try_agents.py", "openai-agents", resumed=False, known=UNFORMED),
    Kind("huggingface_hub", "try_huggingface.py", "huggingface_hub", known=UNTOLD),
    Kind(
        "cohere (rerank)", "try_cohere.py", "cohere", slots=RANKING,
        only=("plain", "cold", "unknown-model", "bad-key"),
    ),
]
