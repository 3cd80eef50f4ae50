//! The worker with a cross-encoder: the embedder of the other tests, with a classifier of one class that is made up.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a broken set-up is a failed test"
)]

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};

use super::{PathBuf, Worker, env, fails, until};

/// Writes the folder of a cross-encoder, its weights in `parts` files.
fn write_ranker(folder: &Path, classes: usize, parts: usize) {
    let embedder = env::var_os("SLOTD_TEST_EMBEDDER");
    let embedder = PathBuf::from(embedder.expect("set SLOTD_TEST_EMBEDDER, `make test` does"));
    fs::copy(embedder.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let config = fs::read(embedder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["architectures"] = json!(["BertForSequenceClassification"]);
    let labels = (0..classes).map(|at| (at.to_string(), json!(format!("LABEL_{at}"))));
    config["id2label"] = Value::Object(labels.collect());
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let file = fs::read(embedder.join("model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, bytes) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let [from, to] =
            [0, 1].map(|at| usize::try_from(entry["data_offsets"][at].as_u64().unwrap()).unwrap());
        let bytes = bytes[from..to].to_vec();
        tensors.insert(
            format!("bert.{name}"),
            (entry["dtype"].clone(), entry["shape"].clone(), bytes),
        );
    }
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "weights are of single precision"
    )]
    let weights = (0..384_u16).map(|at| (0.5 * (1.7 * f64::from(at)).sin()) as f32);
    let weights = weights.flat_map(f32::to_le_bytes).collect::<Vec<_>>().repeat(classes);
    let bias = 0.25_f32.to_le_bytes().repeat(classes);
    tensors.insert("classifier.weight".to_owned(), (json!("F32"), json!([classes, 384]), weights));
    tensors.insert("classifier.bias".to_owned(), (json!("F32"), json!([classes]), bias));

    let name = |part: usize| match parts {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{parts:05}.safetensors", part + 1),
    };
    let mut files = vec![(Map::new(), Vec::new()); parts];
    let mut index = Map::new();
    for (at, (tensor, (dtype, shape, bytes))) in tensors.into_iter().enumerate() {
        let (header, data) = &mut files[at % parts];
        let offsets = [data.len(), data.len() + bytes.len()];
        data.extend(bytes);
        index.insert(tensor.clone(), json!(name(at % parts)));
        header.insert(tensor, json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
    }
    for (part, (header, data)) in files.into_iter().enumerate() {
        let header = Value::Object(header).to_string();
        let length = u64::try_from(header.len()).unwrap().to_le_bytes();
        fs::write(folder.join(name(part)), [&length, header.as_bytes(), &data].concat()).unwrap();
    }
    if parts > 1 {
        let index = json!({ "metadata": {}, "weight_map": index });
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

fn text(of: &Value) -> String {
    let times = usize::try_from(of["repeat"].as_u64().unwrap()).unwrap();
    of["text"].as_str().unwrap().repeat(times)
}

/// Gives the scores in the order of the documents.
async fn scores(worker: &Worker, query: &str, documents: &[String]) -> (Vec<f64>, Value) {
    let body = json!({ "query": query, "documents": documents });
    let (status, answer) = worker.post("/v1/rerank", &body).await;
    assert_eq!(status, 200, "{answer}");
    let mut scores = vec![f64::NAN; documents.len()];
    for result in answer["results"].as_array().unwrap() {
        let at = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
        scores[at] = result["relevance_score"].as_f64().unwrap();
    }
    (scores, answer)
}

/// The scores are those of the same weights in Hugging Face's own library; the file says how.
#[tokio::test]
async fn a_cross_encoder_gives_the_scores_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    write_ranker(folder.path(), 1, 1);
    let mut worker = Worker::start_on(folder.path(), &["--parallel", "4"]).await;
    until(&mut worker.log, "ready in ").await;
    let made: Value = serde_json::from_str(include_str!("../agreement/rerank.json")).unwrap();
    let mut pairs = 0;
    for asked in made["queries"].as_array().unwrap() {
        let (query, wanted) = (text(&asked["query"]), asked["documents"].as_array().unwrap());
        let documents: Vec<String> = wanted.iter().map(|one| text(&one["document"])).collect();
        let (together, answer) = scores(&worker, &query, &documents).await;
        let mut tokens = 0;
        for (at, one) in wanted.iter().enumerate() {
            let off = (together[at] - one["score"].as_f64().unwrap()).abs();
            println!("{}: off by {off}", together[at]);
            assert!(off < 1e-3, "{at}: {} for {one}", together[at]);
            let (alone, _) = scores(&worker, &query, &documents[at..=at]).await;
            assert_eq!(alone, together[at..=at], "alone as among others");
            tokens += one["tokens"].as_u64().unwrap();
            pairs += 1;
        }
        let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
        assert_eq!((&answer["usage"], &answer["object"]), (&usage, &json!("list")));
        let told = answer["results"].as_array().unwrap().iter();
        let told: Vec<f64> = told.map(|one| one["relevance_score"].as_f64().unwrap()).collect();
        assert!(told.is_sorted_by(|a, b| a >= b), "{told:?}");
    }
    assert_eq!(pairs, 8);
}

#[tokio::test]
async fn a_cross_encoder_in_several_files_answers_in_all_spellings_and_tells_of_itself() {
    let folder = tempfile::tempdir().unwrap();
    write_ranker(folder.path(), 1, 3);
    let mut worker = Worker::start_on(folder.path(), &["--alias", "rank"]).await;
    until(&mut worker.log, "ready in ").await;
    let body = json!({ "query": "cats", "documents": ["a cat", "the sea", "tax"], "top_n": 2 });
    let (_, first) = worker.post("/v1/rerank", &body).await;
    assert_eq!((first["results"].as_array().unwrap().len(), &first["model"]), (2, &json!("rank")));
    for path in ["/rerank", "/v1/reranking", "/reranking"] {
        assert_eq!(worker.post(path, &body).await, (200, first.clone()), "{path}");
    }
    let texts =
        json!({ "query": "cats", "texts": ["a cat", "the sea", "tax"], "return_text": true });
    let (_, bare) = worker.post("/rerank", &texts).await;
    assert_eq!(bare.as_array().unwrap().len(), 3, "{bare}");
    for (told, wanted) in bare.as_array().unwrap().iter().zip(first["results"].as_array().unwrap())
    {
        assert_eq!(
            (&told["index"], &told["score"]),
            (&wanted["index"], &wanted["relevance_score"])
        );
        let at = usize::try_from(told["index"].as_u64().unwrap()).unwrap();
        assert_eq!(told["text"], texts["texts"][at]);
    }

    let (status, answer) = worker.post("/v1/rerank", &json!({ "query": "x" })).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("documents")), "{answer}");
    for (path, said) in [
        ("/v1/completions", "`model` ranks documents only, it writes no text"),
        ("/v1/embeddings", "`model` ranks documents only, it makes no embeddings"),
    ] {
        let (status, answer) = worker.post(path, &json!({ "prompt": "x", "input": "x" })).await;
        assert_eq!((status, &answer["error"]["message"]), (400, &json!(said)));
    }

    assert_eq!(worker.get("/health").await, (200, json!({ "status": "ok" })));
    let (_, props) = worker.get("/props").await;
    assert_eq!(props["default_generation_settings"]["n_ctx"], 512);
    let (_, slots) = worker.get("/slots").await;
    assert_eq!(
        (&slots[0]["is_processing"], &slots[0]["n_prompt_tokens"]),
        (&json!(false), &json!(5))
    );
    let metrics = worker.client.get(format!("{}/metrics", worker.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let counted =
        metrics.lines().find_map(|line| line.strip_prefix("llamacpp:prompt_tokens_total "));
    assert!(counted.unwrap().parse::<f64>().unwrap() > 60.0, "{metrics}");
}

#[tokio::test]
async fn a_folder_that_cannot_rank_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    write_ranker(folder.path(), 3, 2);
    let socket = folder.path().join("w.sock");
    let options = ["--socket", socket.to_str().unwrap()];
    let (code, said) = fails(folder.path().to_str().unwrap(), &options).await;
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("the model tells 3 classes apart"), "{said}");
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let (code, said) = fails(folder.path().to_str().unwrap(), &options).await;
    assert_eq!(code, Some(66), "{said}");
    assert!(
        said.contains("names 2 files, and `model-00002-of-00002.safetensors` is not beside it"),
        "{said}"
    );
}

#[tokio::test]
async fn a_model_that_writes_text_does_not_rank() {
    let worker = Worker::ready(&["--context", "64"]).await;
    let body = json!({ "query": "x", "documents": ["y"] });
    let (status, answer) = worker.post("/v1/rerank", &body).await;
    assert_eq!((status, &answer["error"]["type"]), (501, &json!("not_supported_error")));
}
