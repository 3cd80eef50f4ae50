"""Cohere's client, for ranking: `/v2/rerank`."""

import cohere
from protocol import serve

DOCUMENTS = ["Blue light is scattered by air.", "Taxes are due in May."]


def plain(case):
    client = cohere.ClientV2(base_url=case.url, api_key=case.key)
    answer = client.rerank(model=case.model, query="Why is the sky blue?", documents=DOCUMENTS)
    return " ".join(f"{result.index}:{result.relevance_score:.3f}" for result in answer.results)


serve(plain=plain)
