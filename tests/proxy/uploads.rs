//! Forms with files: the model is found wherever it stands, and large ones are not kept in memory.

use std::fs;

use slotd::spec::profile::{Capability, EngineChoice, ModelSource};

use crate::{
    engine::Engine,
    world::{World, limits},
};

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (head, value) in parts {
        form.extend_from_slice(
            format!("--XX\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes(),
        );
        form.extend_from_slice(value);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--XX--\r\n");
    form
}

const HEADERS: &str = "content-type: multipart/form-data; boundary=XX\r\n";
const PATH: &str = "/v1/audio/transcriptions";
const FILE: &str = "name=\"file\"; filename=\"a.wav\"";
const MODEL: &str = "name=\"model\"";

fn ears(world: &mut World, model: Option<&str>) -> Engine {
    world.make_slot("ears", |profile| {
        profile.engine = EngineChoice::Command(vec!["serve".to_owned()]);
        profile.capabilities = vec![Capability::Transcribe];
        profile.model = model.map(|repo| ModelSource::Hub {
            repo: repo.to_owned(),
            quant: None,
            revision: None,
        });
    });
    world.make_ready("ears", 1, (4, 4)).0
}

#[tokio::test]
async fn a_form_goes_through_byte_for_byte_with_its_model_first_or_last_or_not_at_all() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let engine = ears(&mut world, None);
    let large: Vec<u8> = (0..900_000_u32).flat_map(u32::to_le_bytes).take(900_000).collect();
    for file in [&b"RIFF\r\n--X\r\n"[..], &large] {
        for parts in [
            vec![(MODEL, &b"ears"[..]), (FILE, file)],
            vec![(FILE, file), (MODEL, b"transcribe")],
            vec![(FILE, file)],
        ] {
            let form = form(&parts);
            let mut client = world.client().await;
            client.post_with(PATH, HEADERS, &form).await;
            let (mut line, seen) = engine.request().await;
            assert!(seen.body == form, "{} bytes became {}", form.len(), seen.body.len());
            assert_eq!(seen.header("content-type"), Some("multipart/form-data; boundary=XX"));
            assert!(
                !fs::read_dir(world.folder()).unwrap().any(|entry| entry
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".upload")),
                "an upload has a name"
            );
            line.answer("200 OK", r#"{"text":"hello"}"#).await;
            assert_eq!(client.answer().await.head.header("x-slotd-slot"), Some("ears"));
        }
    }
}

#[tokio::test]
async fn an_engine_that_insists_on_a_model_gets_its_name_in_the_form_too() {
    let mut world = World::start(limits()).await;
    let engine = ears(&mut world, Some("org/whisper-large"));
    let large = vec![7; 700_000];
    for file in [&b"RIFF"[..], &large] {
        let mut client = world.client().await;
        client.post_with(PATH, HEADERS, &form(&[(FILE, file), (MODEL, b"ears")])).await;
        let (mut line, seen) = engine.request().await;
        let expected = form(&[(FILE, file), (MODEL, b"org/whisper-large")]);
        assert!(seen.body == expected, "{} bytes", seen.body.len());
        line.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.head.status, 200);
    }
}

#[tokio::test]
async fn forms_that_are_too_large_or_have_no_end_are_refused() {
    let mut world = World::start(limits()).await;
    let _engine = ears(&mut world, None);
    let mut client = world.client().await;
    client.post_with(PATH, HEADERS, &form(&[(FILE, &vec![0; 1 << 20])])).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.head.status, answer.error()["code"].as_str()),
        (413, Some("body_too_large"))
    );
    let mut client = world.client().await;
    client.post_with(PATH, HEADERS, b"--XX\r\n\r\nno end").await;
    assert_eq!(client.answer().await.error()["code"], "invalid_form");
}

#[tokio::test]
async fn an_upload_is_sent_again_when_its_engine_dies_before_it_has_answered() {
    let mut world = World::start(limits()).await;
    let engine = ears(&mut world, None);
    let form = form(&[(FILE, &vec![1; 500_000]), (MODEL, b"ears")]);
    let mut client = world.client().await;
    client.post_with(PATH, HEADERS, &form).await;
    let (line, _) = engine.request().await;
    // Ready before the death is told: the second try finds the new engine.
    let old = world.gate("ears");
    let (next, _gate) = world.make_ready("ears", 2, (4, 4));
    old.mark_dead(slotd::proxy::Blame::Nobody);
    drop((line, engine));
    let engine = next;
    let (mut line, seen) = engine.request().await;
    assert!(seen.body == form);
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
}
