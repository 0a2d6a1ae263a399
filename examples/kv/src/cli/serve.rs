//! `kv serve` and `kv restore`: what is done where a node's disk is.

use crate::cli::failure::Failure;
use crate::cli::output::{Output, spinner};
use clap::Args;
use kv::config::Config;
use kv::http;
use kv::node::Node;
use std::fs::File;
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Args)]
pub(crate) struct Serve {
    /// Which of the nodes in the configuration this one is
    #[arg(long)]
    name: String,
    /// The cluster's configuration
    #[arg(long, value_name = "FILE", default_value = "cluster.yaml")]
    config: PathBuf,
}

pub(crate) async fn serve(serve: Serve) -> Result<(), Failure> {
    let config = load(&serve.config)?;
    let address = named(&config, &serve.name)?;
    let listener = listen(&address).await?;
    let stop = stop_signal()?;
    let node = Node::start(config, &serve.name)
        .await
        .map_err(|error| Failure::other(format!("{} did not start: {error}", serve.name)))?;
    // Standard output, so that whoever has started this can wait for it.
    println!("{} serves clients at http://{address}/; Ctrl-C ends it", serve.name);
    let serving = tokio::spawn(http::serve(node.clone(), listener, stop));
    match node.ended().await {
        Some(failure) => Err(Failure::other(format!("{} has failed: {failure}", serve.name))),
        None => Ok(serving.await.map_err(std::io::Error::other)??),
    }
}

/// A signal that asks this process to end. Listened for from now on.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

pub(crate) async fn listen(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::other(format!(
            "clients cannot be served at {address}: {error}; end what listens there, or change \
             `http` in the configuration"
        ))
    })
}

fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| Failure::usage(error.to_string()))
}

/// The address for clients of the node of this name.
fn named(config: &Config, name: &str) -> Result<String, Failure> {
    let node = config.node(name).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(node.http.clone())
}

#[derive(Args)]
pub(crate) struct Restore {
    /// What `kv backup` wrote
    file: PathBuf,
    /// The nodes to restore here, which must not have started yet; several are possible
    #[arg(long = "name", value_name = "NAME", required = true)]
    names: Vec<String>,
    /// The cluster's configuration
    #[arg(long, value_name = "FILE", default_value = "cluster.yaml")]
    config: PathBuf,
}

pub(crate) fn restore(output: Output, restore: Restore) -> Result<(), Failure> {
    let config = load(&restore.config)?;
    for name in &restore.names {
        named(&config, name)?;
    }
    for name in &restore.names {
        let file = File::open(&restore.file).map_err(|error| {
            Failure::usage(format!("{} cannot be read: {error}", restore.file.display()))
        })?;
        let progress = spinner("{spinner} {bytes} {bytes_per_sec}");
        let report = Node::restore(&config, name, progress.wrap_read(file));
        progress.finish_and_clear();
        let report =
            report.map_err(|error| Failure::other(format!("{name} was not restored: {error}")))?;
        output.print(&report, || {
            format!("{name} begins with revision {}, {} keys", report.revision, report.keys)
        })?;
    }
    Ok(())
}
