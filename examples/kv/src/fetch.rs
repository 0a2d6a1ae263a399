//! How a snapshot comes here: Raft's message brings only its name. The file is fetched in chunks
//! from whoever offered it, from where it broke off if it does, and only when all of it is here,
//! and is what it should be, does the message go to the replica.

use crate::proto::SnapshotRequest;
use crate::snapshots::Handle;
use crate::tallies::Tallies;
use crate::transport::{Network, locked};
use crate::wire::{RaftMessage, stamp};
use little_raft::{Body, ReplicaID};
use std::io::{self, Error, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How many times in a row fetching may break off without having brought anything.
const TRIES: u32 = 5;
/// The pause after one that has.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the next chunk may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fetches one snapshot at a time.
#[derive(Default)]
pub(crate) struct Fetcher {
    underway: Arc<Mutex<Option<Fetch>>>,
}

struct Fetch {
    from: ReplicaID,
    handle: Handle,
    /// What the replica will be told: the latest of the messages that offered this snapshot.
    message: RaftMessage,
    task: JoinHandle<()>,
}

impl Fetcher {
    /// A node offers a snapshot by this message. While one of its snapshots is being fetched no
    /// other is; if another node offers one, it is the new leader.
    pub(crate) fn offer(&self, network: &Arc<Network>, from: ReplicaID, message: RaftMessage) {
        let Some((handle, at)) = snapshot(&message) else { return };
        let mut underway = locked(&self.underway);
        match underway.as_mut() {
            Some(fetch) if fetch.from == from && fetch.handle == handle => {
                fetch.message = message;
                return;
            }
            Some(fetch) if fetch.from == from => return,
            Some(fetch) => fetch.task.abort(),
            None => {}
        }
        let (network, slot, offered) = (network.clone(), self.underway.clone(), handle.clone());
        let task = network.clone().runtime().spawn(async move {
            let result = fetch(&network, from, &offered, at).await;
            let fetch = locked(&slot).take_if(|it| it.from == from && it.handle == offered);
            match (result, fetch) {
                (Ok(handle), Some(fetch)) => {
                    Tallies::add(&network.tallies.snapshots_received, 1);
                    network.inbox.put(with_handle(fetch.message, handle), 0);
                }
                (Ok(_), None) => {}
                (Err(error), _) => log::warn!(
                    "node {}: no snapshot from node {from}, which will offer it again: {error}",
                    network.own.id
                ),
            }
        });
        *underway = Some(Fetch { from, handle, message, task });
    }

    pub(crate) fn stop(&self) {
        locked(&self.underway).take().into_iter().for_each(|fetch| fetch.task.abort());
    }
}

/// The snapshot that a message offers, and its position.
fn snapshot(message: &RaftMessage) -> Option<(Handle, (usize, usize))> {
    let Body::InstallSnapshot { snapshot, .. } = &message.body else { return None };
    let at = (snapshot.last_included_index, snapshot.last_included_term);
    Some((snapshot.data.clone(), at))
}

/// The message with the handle to the file that is here.
fn with_handle(mut message: RaftMessage, handle: Handle) -> RaftMessage {
    if let Body::InstallSnapshot { snapshot, .. } = &mut message.body {
        snapshot.data = handle;
    }
    message
}

async fn fetch(
    network: &Arc<Network>, from: ReplicaID, offered: &Handle, at: (usize, usize),
) -> io::Result<Handle> {
    // The name is ours: what the other calls it may be no name at all.
    let name = format!("from-{from}-{:08x}-{}", offered.checksum(), offered.length());
    let path = network.snapshots.partial(&name);
    let mut left = TRIES;
    loop {
        let before = length(&path).await;
        match fetch_more(network, from, offered, &path).await {
            Ok(()) => break,
            Err(error) if length(&path).await > before => {
                log::info!("node {}: fetching a snapshot broke off: {error}", network.own.id);
                left = TRIES;
            }
            Err(error) if left == 0 => return Err(error),
            Err(_) => left -= 1,
        }
        sleep(PAUSE).await;
    }
    let (snapshots, offered) = (network.snapshots.clone(), offered.clone());
    let receive = move || {
        snapshots.receive(&path, &offered, at).inspect_err(|_| {
            // It would be wrong again.
            let _ = std::fs::remove_file(&path);
        })
    };
    tokio::task::spawn_blocking(receive).await.map_err(Error::other)?
}

async fn length(path: &Path) -> u64 {
    tokio::fs::metadata(path).await.map_or(0, |file| file.len())
}

/// Fetches from where the file ends.
async fn fetch_more(
    network: &Arc<Network>, from: ReplicaID, offered: &Handle, path: &Path,
) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path).await?;
    let mut offset = length(path).await;
    if offset > offered.length() {
        file.set_len(0).await?;
        offset = 0;
    }
    let mut client = network.client(from, PATIENCE).await.ok_or(ErrorKind::NotConnected)?;
    let request = SnapshotRequest { name: offered.name().to_string(), offset };
    let call = client.fetch_snapshot(stamp(&network.own, from, request));
    let failed = |status: tonic::Status| Error::other(status.message().to_string());
    let mut chunks = timeout(PATIENCE, call).await?.map_err(failed)?.into_inner();
    while offset < offered.length() {
        let chunk = timeout(PATIENCE, chunks.message()).await?.map_err(failed)?;
        let chunk = chunk.ok_or(ErrorKind::UnexpectedEof)?;
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        if chunk.offset != offset || chunk.data.is_empty() || end > offered.length() {
            let text = format!("a chunk from {} to {end} does not go on at {offset}", chunk.offset);
            return Err(Error::new(ErrorKind::InvalidData, text));
        }
        file.write_all(&chunk.data).await?;
        // The file's length is where the next try goes on: nothing may still be on its way there.
        file.flush().await?;
        offset = end;
    }
    Ok(())
}
