//! What stands between nodes, for tests.

use super::free_port;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Stands between nodes and a node, and does them harm.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) harm: Arc<Harm>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct Harm {
    /// Connections are cut once they have carried more bytes than this from the node; 0 for never.
    pub(crate) cut_after: AtomicUsize,
    /// Nothing is carried any more, but nothing is closed either.
    pub(crate) hangs: AtomicBool,
    pub(crate) connections: AtomicUsize,
}

impl Proxy {
    pub(crate) async fn start(to: String) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let (address, harm) = (listener.local_addr().unwrap(), Arc::new(Harm::default()));
        let done = harm.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&to).await else { continue };
                done.connections.fetch_add(1, Ordering::Relaxed);
                let done = done.clone();
                tokio::spawn(async move {
                    let (mut near, mut far) = (near.into_split(), far.into_split());
                    let never = AtomicUsize::new(0);
                    tokio::select! {
                        () = carry(&mut near.0, &mut far.1, &done, &never) => {}
                        () = carry(&mut far.0, &mut near.1, &done, &done.cut_after) => {}
                    }
                });
            }
        });
        Proxy { address, harm, task }
    }
}

/// Copies until one of both ends, or the harm is done.
async fn carry(
    from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, harm: &Harm, cut_after: &AtomicUsize,
) {
    let (mut buffer, mut carried) = (vec![0; 16 * 1024], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        while harm.hangs.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5)).await;
        }
        carried += read;
        let limit = cut_after.load(Ordering::Relaxed);
        if limit > 0 && carried > limit || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
