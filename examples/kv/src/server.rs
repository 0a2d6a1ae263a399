//! What a node answers to other nodes.

use crate::command::Action;
use crate::machine::Fate;
use crate::proto::node_server::{self, NodeServer};
use crate::proto::{
    Envelope, MembersProgress, MembersRequest, SnapshotChunk, SnapshotRequest, Welcome,
    WriteRequest, WriteResponse,
};
use crate::report::{MembersChange, MembersStep};
use crate::tallies::Tallies;
use crate::transport::{Certificates, KEEP_ALIVE, Network, WINDOWS};
use crate::wire::{MAX_MESSAGE, RaftMessage, caller, decode};
use bytes::Bytes;
use little_raft::{Body, ReplicaID};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a snapshot in one chunk.
const CHUNK: usize = 256 * 1024;

/// What a node does for others beside carrying messages.
#[tonic::async_trait]
pub(crate) trait Desk: Send + Sync + 'static {
    /// Proposes a command here, and waits for its fate.
    async fn write(&self, action: Action, patience: Duration) -> Fate;

    /// Changes the members, if this node leads.
    fn change_members(self: Arc<Self>, change: MembersChange) -> mpsc::Receiver<MembersStep>;
}

/// Listens for other nodes until the network is stopped.
pub(crate) async fn serve(
    network: Arc<Network>, desk: Arc<dyn Desk>, listener: TcpListener, tls: Option<Certificates>,
) -> Result<(), tonic::transport::Error> {
    let mut stopped = network.stopped();
    let service = NodeServer::new(Server { network, desk })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_concurrent_streams(1024);
    if let Some(tls) = tls {
        server = server.tls_config(tls.server())?;
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stop = async move { _ = stopped.wait_for(|stopped| *stopped).await };
    server.add_service(service).serve_with_incoming_shutdown(incoming, stop).await
}

struct Server {
    network: Arc<Network>,
    desk: Arc<dyn Desk>,
}

impl Server {
    /// Who calls, if it may.
    fn admit<T>(&self, request: &Request<T>) -> Result<ReplicaID, Status> {
        let admitted = caller(&self.network.own, request.metadata()).and_then(|who| {
            self.network.admit(&who).map_err(Status::failed_precondition)?;
            Ok(who.id)
        });
        admitted.inspect_err(|status| {
            Tallies::add(&self.network.tallies.callers_refused, 1);
            let (own, from) = (self.network.own.id, request.remote_addr());
            log::warn!("node {own}: refused a call from {from:?}: {}", status.message());
        })
    }
}

/// Takes a message in.
fn deliver(network: &Arc<Network>, from: ReplicaID, message: RaftMessage, bytes: usize) {
    Tallies::add(&network.tallies.messages_received, 1);
    if matches!(message.body, Body::InstallSnapshot { .. }) {
        network.fetcher.offer(network, from, message);
    } else if !network.inbox.put(message, bytes) {
        Tallies::add(&network.tallies.messages_dropped, 1);
    }
}

#[tonic::async_trait]
impl node_server::Node for Server {
    type ExchangeStream = ReceiverStream<Result<Welcome, Status>>;
    type FetchSnapshotStream = ReceiverStream<Result<SnapshotChunk, Status>>;
    type ChangeMembersStream = ReceiverStream<Result<MembersProgress, Status>>;

    async fn exchange(
        &self, request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let from = self.admit(&request)?;
        self.network.heard(from);
        let (network, mut envelopes) = (self.network.clone(), request.into_inner());
        let (answer, answers) = mpsc::channel(2);
        let own = &network.own;
        let (cluster, id, identity) = (own.cluster.clone(), own.id as u64, own.identity.clone());
        let origin = own.origin.clone().unwrap_or_default();
        let _ = answer.try_send(Ok(Welcome { cluster, id, identity, origin }));
        tokio::spawn(async move {
            let mut stopped = network.stopped();
            loop {
                let envelope = tokio::select! {
                    envelope = envelopes.message() => envelope,
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                };
                let Ok(Some(Envelope { message })) = envelope else { return };
                match decode(&message, from) {
                    Ok(decoded) => deliver(&network, from, decoded, message.len()),
                    Err(problem) => {
                        Tallies::add(&network.tallies.callers_refused, 1);
                        log::warn!("node {}: from node {from}: {problem}", network.own.id);
                        let _ = answer.try_send(Err(Status::invalid_argument(problem)));
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn fetch_snapshot(
        &self, request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let from = self.admit(&request)?;
        let SnapshotRequest { name, offset } = request.into_inner();
        let offered = self.network.offered(from).filter(|handle| handle.name() == name);
        let handle = offered.ok_or_else(|| {
            Status::not_found("that snapshot is not offered any more; wait for the next")
        })?;
        let (network, (sender, chunks)) = (self.network.clone(), mpsc::channel(4));
        tokio::task::spawn_blocking(move || {
            let path = network.snapshots.path(&handle);
            match send_file(&path, offset, &sender) {
                Ok(true) => {
                    Tallies::add(&network.tallies.snapshots_sent, 1);
                    network.taken(from, &handle);
                }
                Ok(false) => {}
                Err(error) => _ = sender.blocking_send(Err(Status::internal(error.to_string()))),
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn write(
        &self, request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        self.admit(&request)?;
        let WriteRequest { request, milliseconds } = request.into_inner();
        let action = postcard::from_bytes(&request)
            .map_err(|error| Status::invalid_argument(format!("no request: {error}")))?;
        let fate = self.desk.write(action, Duration::from_millis(milliseconds)).await;
        let answer = postcard::to_allocvec(&fate)
            .map_err(|error| Status::internal(format!("no answer: {error}")))?;
        Ok(Response::new(WriteResponse { answer: answer.into() }))
    }

    async fn change_members(
        &self, request: Request<MembersRequest>,
    ) -> Result<Response<Self::ChangeMembersStream>, Status> {
        self.admit(&request)?;
        let change = serde_json::from_str(&request.into_inner().change)
            .map_err(|error| Status::invalid_argument(format!("no change: {error}")))?;
        let mut steps = self.desk.clone().change_members(change);
        let (sender, progress) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(step) = steps.recv().await {
                let step = serde_json::to_string(&step).map(|step| MembersProgress { step });
                let step = step.map_err(|error| Status::internal(error.to_string()));
                if sender.send(step).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(progress)))
    }
}

/// Sends a file from an offset on. False if nobody wants it any more.
fn send_file(
    path: &std::path::Path, offset: u64, sender: &mpsc::Sender<Result<SnapshotChunk, Status>>,
) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut offset = file.seek(SeekFrom::Start(offset))?;
    loop {
        let mut data = Vec::with_capacity(CHUNK);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut data)?;
        if read == 0 {
            return Ok(true);
        }
        let chunk = SnapshotChunk { offset, data: Bytes::from(data) };
        if sender.blocking_send(Ok(chunk)).is_err() {
            return Ok(false);
        }
        offset += read as u64;
    }
}
