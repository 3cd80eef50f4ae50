//! The yardstick: a relay that knows nothing of HTTP. Bytes pass both ways, nothing else happens.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    task::JoinSet,
};

/// Relays every connection to `address` to one of its own to `upstream`, for ever.
pub(crate) async fn serve(address: String, upstream: String) {
    let listener = TcpListener::bind(address).await.unwrap();
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        connections.spawn(connection(client, upstream.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, upstream: String) {
    let Ok(engine) = TcpStream::connect(upstream).await else { return };
    client.set_nodelay(true).unwrap();
    engine.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_engine, to_engine)) =
        (client.into_split(), engine.into_split());
    tokio::select! {
        () = pass(from_client, to_engine) => {}
        () = pass(from_engine, to_client) => {}
    }
}

async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) {
    let mut buffer = vec![0; 8 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
