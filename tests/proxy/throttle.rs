//! What answers say of the machine's pace.

use slotd::{
    proxy::ByteRelay,
    spec::pressure::{Pressure, Strain},
};

use crate::{
    client::chat,
    world::{World, limits},
};

#[tokio::test]
async fn an_answer_says_how_much_to_hold_back_only_while_that_is_so() {
    for way in [ByteRelay::On, ByteRelay::Off] {
        let mut world = World::start_by(limits(), way).await;
        let (engine, _gate) = world.make_ready("chat", 1, (4, 16));
        let short = Strain { memory: Pressure::Elevated, ..Strain::default() };
        for (strain, told) in [(Strain::default(), None), (short, Some("0.5"))] {
            world.throttle.set(&strain);
            let mut client = world.client().await;
            client.post(&chat("chat", false)).await;
            let (mut line, _) = engine.request().await;
            line.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
            let answer = client.answer().await;
            assert_eq!(answer.head.header("x-slotd-throttle"), told, "{way:?}");
        }
    }
}
