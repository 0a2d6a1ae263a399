//! `kv demo`: three nodes in one process, to try things out.

use crate::cli::failure::{Failure, Kind};
use crate::cli::serve::{listen, stop_signal};
use clap::Args;
use kv::config::{Config, Limits, NodeConfig, Timing};
use kv::http;
use kv::node::{Consistency, Node};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Where the first node serves clients; the others do so at the ports that follow.
pub(crate) const PORT: u16 = 8101;
/// Nodes, which is the least number of which one may fail.
const NODES: usize = 3;
/// How long the nodes may take to elect a leader. It is far less than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Demo {
    /// Serve clients at this port and the ones that follow; without it, any that are free will do
    #[arg(long)]
    port: Option<u16>,
}

pub(crate) async fn demo(demo: Demo) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let directory = tempfile::Builder::new().prefix("kv-demo-").tempdir()?;
    let listeners = listeners(demo.port).await?;
    let config = config(&listeners, directory.path()).await?;
    let (mut nodes, mut servers) = (Vec::new(), Vec::new());
    let (ending, _) = watch::channel(false);
    for (node, listener) in config.nodes.iter().zip(listeners) {
        let node = Node::start(config.clone(), &node.name)
            .await
            .map_err(|error| Failure::other(format!("{} did not start: {error}", node.name)))?;
        let mut end = ending.subscribe();
        let end = async move { drop(end.wait_for(|ending| *ending).await) };
        servers.push(tokio::spawn(http::serve(node.clone(), listener, end)));
        nodes.push(node);
    }
    let failure = tokio::select! {
        failure = run(&nodes, directory.path()) => Some(failure),
        () = stop => None,
    };
    // All end together, so there is nobody to hand leadership over to.
    for node in &nodes {
        node.halt().await;
    }
    ending.send_replace(true);
    for server in servers {
        server.await.map_err(std::io::Error::other)??;
    }
    directory.close()?;
    failure.map_or(Ok(()), Err)
}

/// Where the nodes listen for clients.
async fn listeners(port: Option<u16>) -> Result<Vec<TcpListener>, Failure> {
    let at = |first: u16| async move {
        let mut listeners = Vec::new();
        for number in 0..NODES as u16 {
            // From 0, the system chooses.
            let port = if first == 0 { 0 } else { first.saturating_add(number) };
            listeners.push(listen(&format!("127.0.0.1:{port}")).await?);
        }
        Ok(listeners)
    };
    match port {
        Some(port) => at(port).await,
        None => match at(PORT).await {
            Ok(listeners) => Ok(listeners),
            Err(Failure { .. }) => at(0).await,
        },
    }
}

async fn config(listeners: &[TcpListener], directory: &Path) -> Result<Config, Failure> {
    let mut nodes = Vec::new();
    // Ports are given back only after all are chosen, so that they are different.
    let mut chosen = Vec::new();
    for (number, listener) in (1..).zip(listeners) {
        let raft = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        nodes.push(NodeConfig {
            name: format!("node{number}"),
            id: number,
            raft: raft.local_addr()?.to_string(),
            http: listener.local_addr()?.to_string(),
            joining: false,
        });
        chosen.push(raft);
    }
    let ms = Duration::from_millis;
    Ok(Config {
        cluster: "demo".to_string(),
        nodes,
        data_directory: directory.to_path_buf(),
        timing: Timing {
            heartbeat: ms(100),
            election_timeout: (ms(500), ms(1000)),
            request_timeout: ms(5000),
            clock_drift: None,
        },
        snapshot_interval: 10_000,
        limits: Limits::default(),
        tls: None,
    })
}

/// Says what to try once there is a leader, then waits for a node to fail, which none should.
async fn run(nodes: &[Node], directory: &Path) -> Failure {
    let begun = Instant::now();
    let Some(first) = nodes.first() else { return Failure::other("there are no nodes") };
    while first.read(Consistency::Linearizable, |_| ()).await.is_err() {
        if begun.elapsed() > PATIENCE {
            let message = format!("no leader was elected in {PATIENCE:?}");
            return Failure::new(Kind::Unavailable, "no_leader", message);
        }
    }
    print!("{}", invitation(first, directory));
    let ended = nodes.iter().map(|node| Box::pin(node.ended()));
    let (failure, _, _) = futures_util::future::select_all(ended).await;
    Failure::other(format!("a node has failed: {}", failure.unwrap_or_default()))
}

/// What to try, as lines to paste.
fn invitation(node: &Node, directory: &Path) -> String {
    let addresses: Vec<_> = node.config().nodes.iter().map(|it| it.http.as_str()).collect();
    let status = node.status();
    let leader = status.leader.and_then(|id| status.nodes.iter().find(|node| node.id == id));
    let leader = leader.map_or("nobody", |node| &node.name);
    let program = std::env::args().next().unwrap_or("kv".to_string());
    let usual = addresses.first().is_some_and(|it| it.ends_with(&format!(":{PORT}")));
    let export = match usual {
        true => String::new(),
        false => format!("  export KV_NODES={}\n", addresses.join(",")),
    };
    let (one, two, last) = (addresses[0], addresses[1], addresses[addresses.len() - 1]);
    format!(
        "three nodes run, {leader} leads; the page is at http://{one}/\n\
         their data is in {}, and goes when they do\n\
         \n\
         Try, in another terminal:\n\
         \n\
         {export}\
         \x20 {program} put fruit apple\n\
         \x20 {program} get fruit\n\
         \x20 {program} status\n\
         \x20 curl -i http://{two}/kv/fruit\n\
         \x20 curl -i -X PUT --data pear -H 'If-Match: \"1\"' http://{last}/kv/fruit\n\
         \x20 curl -i -X POST --data '{{\"key\":\"tea\",\"value\":\"green\"}}' http://{one}/command\n\
         \x20 {program} transfer\n\
         \x20 {program} bench --seconds 5\n\
         \n\
         Ctrl-C ends it.\n",
        directory.display()
    )
}
