//! The command line: what can be asked for, and who does it.
//!
//! To read: `client` finds a node that answers, `failure` is how commands fail, `output` how they
//! tell; the other modules are commands.

mod bench;
mod client;
mod cluster;
mod demo;
mod failure;
mod keys;
mod output;
mod serve;
mod watch;

use clap::{Args, Parser, Subcommand};
use client::Client;
use failure::Failure;
use output::Output;
use std::process::ExitCode;
use std::time::Duration;

/// A replicated key-value database: run a node, or talk to a cluster.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP, subcommand_required = true,
          arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
First ten seconds:
  kv demo                         three nodes in one process; in another terminal:
  kv put fruit apple              write
  kv get fruit                    read, from any node, never stale
  kv cas fruit pear --version 1   write only if nobody else has in between
  kv status                       who leads, and how far everybody is

A cluster of your own:
  kv serve --config cluster.yaml --name node1      on each machine, with its own name
  export KV_NODES=10.0.0.1:8101,10.0.0.2:8101      where the commands ask; the next if one is down
  kv members add node4 --id 4 --raft 10.0.0.4:7101 --http 10.0.0.4:8101
  kv backup monday.backup

Exit codes:
  0  done
  1  there is no such key, or a condition did not hold; nothing was done
  2  the command makes no sense
  3  no node could do it, and nothing was done; try again later
  4  the outcome is unknown: it may or may not have been done; read to find out
  5  something else failed, such as a disk";

#[derive(Args)]
struct Shared {
    /// The nodes to ask, as host:port; if one does not answer, the next
    #[arg(
        long,
        env = "KV_NODES",
        global = true,
        value_delimiter = ',',
        value_name = "NODE,NODE",
        default_value = "127.0.0.1:8101,127.0.0.1:8102,127.0.0.1:8103"
    )]
    nodes: Vec<String>,
    /// For whom the output is
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
    /// How long to try, in seconds
    #[arg(long, env = "KV_TIMEOUT", global = true, default_value_t = 15, value_name = "SECONDS")]
    timeout: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node
    #[command(
        after_help = "Example:\n  kv serve --config cluster.yaml --name node1\n\nSIGTERM and \
                            Ctrl-C end it: leadership is handed over and what is underway \
                            answered first.\nRUST_LOG=debug shows more of what goes on."
    )]
    Serve(serve::Serve),
    /// Run three nodes in this process, with data in a temporary directory
    #[command(after_help = "Example:\n  kv demo\n\nIt prints what to try. Ctrl-C ends it.")]
    Demo(demo::Demo),
    /// Print the value of a key, exactly
    #[command(
        after_help = "Examples:\n  kv get fruit\n  kv get picture > picture.png\n  kv get fruit \
                            --consistency stale    what the asked node knows, leader or not"
    )]
    Get(keys::Get),
    /// Give a key a value
    #[command(
        after_help = "Examples:\n  kv put fruit apple\n  kv put picture --file picture.png\n  \
                            date | kv put now -\n  kv put counter 1 --once    sent again until it is \
                            known to be done, which it is once"
    )]
    Put(keys::Put),
    /// Remove a key
    #[command(
        visible_alias = "delete",
        after_help = "Examples:\n  kv del fruit\n  kv del fruit \
                                                      --version 7    only if it has not changed"
    )]
    Del(keys::Delete),
    /// Give a key a value, if it is as expected
    #[command(
        after_help = "Examples:\n  kv cas fruit pear --version 7    if nobody has changed it \
                            since\n  kv cas lock mine --absent        if it does not exist\n\nExits \
                            with 1 if it is not as expected, and says how it is."
    )]
    Cas(keys::CompareAndSwap),
    /// List keys, their versions and values
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  kv list\n  kv list users/ --limit 10\n  \
                                                  kv list --output json | jq -r .key"
    )]
    List(keys::List),
    /// Print changes as they happen
    #[command(
        after_help = "Examples:\n  kv watch\n  kv watch users/ --from 120    from that revision \
                            on\n  kv watch lock --count 1       wait for a change, then end"
    )]
    Watch(watch::Watch),
    /// Print how all nodes are
    #[command(after_help = "Exits with 3 if nobody leads.")]
    Status,
    /// Print the members of the cluster, or change them
    #[command(after_help = "Examples:\n  kv members\n  kv members add node4 --id 4 --raft \
                            10.0.0.4:7101 --http 10.0.0.4:8101\n  kv members remove node2\n  kv \
                            members replace node2 node5 --id 5 --raft 10.0.0.5:7101 --http \
                            10.0.0.5:8101\n\nStart a new node before it is added; with `joining: \
                            true` in its configuration it waits.\nA change that was interrupted \
                            goes on when the same command is given again.")]
    Members(cluster::Members),
    /// Hand leadership over
    #[command(
        after_help = "Examples:\n  kv transfer         to whoever is furthest\n  kv transfer \
                            node3"
    )]
    Transfer(cluster::Transfer),
    /// Write all keys and sessions to a file, as they are at one moment
    #[command(after_help = "Example:\n  kv backup monday.backup")]
    Backup(cluster::Backup),
    /// Begin the nodes of a new cluster with a backup, before they are started
    #[command(after_help = "Example, with the same backup for every node of the cluster:\n  kv \
                            restore monday.backup --config cluster.yaml --name node1")]
    Restore(serve::Restore),
    /// Measure how many requests the cluster answers, and how fast
    #[command(
        after_help = "Examples:\n  kv bench\n  kv bench --clients 64 --reads 90 --seconds 30\n\n\
                            It writes keys that begin with bench/ and leaves them there."
    )]
    Bench(bench::Bench),
}

/// Does what the command line says.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let level = match arguments.command {
        Command::Serve(_) => "info",
        _ => "error",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    let output = arguments.shared.output;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(output, &error.into()),
    };
    match runtime.block_on(execute(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_harmless() => ExitCode::SUCCESS,
        Err(failure) => fail(output, &failure),
    }
}

fn fail(output: Output, failure: &Failure) -> ExitCode {
    match output {
        Output::Text => eprintln!("kv: {failure}"),
        Output::Json => eprintln!("{}", failure.json()),
    }
    failure.exit_code()
}

async fn execute(arguments: Arguments) -> Result<(), Failure> {
    let Shared { nodes, output, timeout } = arguments.shared;
    let client = Client::new(&nodes, Duration::from_secs(timeout))?;
    match arguments.command {
        Command::Serve(it) => serve::serve(it).await,
        Command::Demo(it) => demo::demo(it).await,
        Command::Get(it) => keys::get(&client, output, it).await,
        Command::Put(it) => keys::put(&client, output, it).await,
        Command::Del(it) => keys::delete(&client, output, it).await,
        Command::Cas(it) => keys::cas(&client, output, it).await,
        Command::List(it) => keys::list(&client, output, it).await,
        Command::Watch(it) => watch::watch(&client, output, it).await,
        Command::Status => cluster::status(&client, output).await,
        Command::Members(it) => cluster::members(&client, output, it).await,
        Command::Transfer(it) => cluster::transfer(&client, output, it).await,
        Command::Backup(it) => cluster::backup(&client, output, it).await,
        Command::Restore(it) => serve::restore(output, it),
        Command::Bench(it) => bench::bench(&client, output, it).await,
    }
}
