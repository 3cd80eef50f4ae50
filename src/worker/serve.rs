//! The life of the worker: listen, load, serve, end.

use std::{path::Path, pin::pin, sync::Arc, thread, time::Duration};

use candle_core::Device;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    clock::now,
    engine::Engine,
    exit::{Ending, say},
    http::{Served, router},
    listen::Listener,
    load::{gpu, load},
    options::{Address, Options},
};

/// Open answers get this long to end with an error of their own.
const GRACE: Duration = Duration::from_millis(600);

/// Serves until a signal comes, or something that ends the worker.
pub(super) async fn serve(options: Options, address: Address) -> Result<(), Ending> {
    let started = now();
    let gpu = gpu(&options)?;
    let cannot_watch = |error| Ending::internal(format!("cannot watch for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_watch)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_watch)?;
    let listener = Listener::bind(&address).await?;
    let (name, path) = (options.model_name(), options.model.display().to_string());
    let served = Arc::new(Served::new(name, path, options.parallel));
    let (stop, stopped) = oneshot::channel();
    let (serving, _socket_file) = listener.serve(router(Arc::clone(&served)), stopped);
    let mut serving = pin!(serving);
    let (fatal, mut fatals) = mpsc::channel(1);
    let mut loading = pin!(start_loading(options, &served, gpu, fatal)?);
    let mut engine: Option<Arc<Engine>> = None;
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            Some(ending) = fatals.recv() => break Err(ending),
            result = &mut serving => {
                let reason = result.err().map_or_else(String::new, |error| format!(": {error}"));
                break Err(Ending::internal(format!("the listener ended{reason}")));
            }
            loaded = &mut loading, if engine.is_none() => match loaded {
                Ok(Ok(loaded)) => {
                    let loaded = Arc::new(loaded);
                    served.set_engine(Arc::clone(&loaded));
                    engine = Some(loaded);
                    say(format_args!("ready in {} ms", started.elapsed().as_millis()));
                }
                Ok(Err(ending)) => break Err(ending),
                Err(_) => {
                    let panicked = Ending::bad_model("the model is damaged: loading it panicked");
                    break Err(panicked.of(Path::new(&served.model_path)));
                }
            },
        }
    };
    if let Some(engine) = &engine {
        engine.close();
    }
    // A server that is gone already waits for nothing.
    if stop.send(()).is_err() {
        return ended;
    }
    // Connections that are still open after the grace end with the process.
    drop(timeout(GRACE, &mut serving).await);
    if let Some(engine) = &engine {
        engine.join_ended();
    }
    ended
}

type Loaded = oneshot::Receiver<Result<Engine, Ending>>;

/// The loading thread is not waited for: a signal while it reads must end the worker at once.
fn start_loading(
    options: Options,
    served: &Arc<Served>,
    gpu: Option<(Device, usize)>,
    fatal: mpsc::Sender<Ending>,
) -> Result<Loaded, Ending> {
    let (tell, loaded) = oneshot::channel();
    let served = Arc::clone(served);
    thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            let result = load(&options, &served, gpu, fatal);
            // Nobody waits if the worker is ending.
            drop(tell.send(result));
        })
        .map_err(|error| Ending::internal(format!("cannot start a thread: {error}")))?;
    Ok(loaded)
}
