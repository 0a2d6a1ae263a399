//! `kv status`, `members`, `transfer` and `backup`.

use crate::cli::client::{Client, Repeat};
use crate::cli::failure::{Failure, Kind};
use crate::cli::output::{Output, bar, spinner, table};
use clap::{Args, Subcommand};
use futures_util::StreamExt;
use kv::command::Address;
use kv::node::{MembersChange, MembersStep, NodeStatus};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

#[derive(Deserialize, Serialize)]
struct ClusterStatus {
    nodes: Vec<Told>,
}

/// What one node tells about itself.
#[derive(Deserialize, Serialize)]
struct Told {
    id: usize,
    name: String,
    http: String,
    status: Option<NodeStatus>,
    error: Option<String>,
}

pub(crate) async fn status(client: &Client, output: Output) -> Result<(), Failure> {
    let status: ClusterStatus = client.ask(Repeat::Harmless, client.get("/cluster/status")).await?;
    output.print(&status, || text(&status.nodes))?;
    let led = status.nodes.iter().filter_map(|node| node.status.as_ref());
    if led.clone().all(|node| node.leader.is_none()) {
        let message = "no node that answers knows of a leader; a majority of the voters must be up \
                       and reach each other";
        return Err(Failure::new(Kind::Unavailable, "no_leader", message));
    }
    Ok(())
}

fn text(nodes: &[Told]) -> String {
    let end = nodes.iter().filter_map(|node| Some(node.status.as_ref()?.last_index)).max();
    let row = |node: &Told| match &node.status {
        Some(status) => {
            let behind = end.unwrap_or_default().saturating_sub(status.applied_index);
            let numbers = [
                status.term,
                status.saved_index,
                status.commit_index,
                status.applied_index,
                behind,
                status.keys,
            ];
            let numbers = numbers.iter().map(usize::to_string);
            let role = role(status);
            [node.name.clone(), node.id.to_string(), role].into_iter().chain(numbers).collect()
        }
        None => {
            let mut row = vec![node.name.clone(), node.id.to_string(), "no answer".to_string()];
            row.resize(9, String::new());
            row
        }
    };
    let headings =
        ["node", ">id", "role", ">term", ">saved", ">committed", ">applied", ">behind", ">keys"];
    table(&headings, &nodes.iter().map(row).collect::<Vec<_>>())
}

fn role(status: &NodeStatus) -> String {
    match status.role.as_str() {
        "follower" if status.learners.contains(&status.id) => "learner".to_string(),
        "follower" if !status.voters.contains(&status.id) => "no member".to_string(),
        role => role.replace('_', " "),
    }
}

#[derive(Args)]
pub(crate) struct Transfer {
    /// Who is to lead, by name; without it, whoever is furthest
    to: Option<String>,
}

pub(crate) async fn transfer(
    client: &Client, output: Output, transfer: Transfer,
) -> Result<(), Failure> {
    let post = client.request(Method::POST, "/cluster/leader");
    let body = json!({ "to": transfer.to });
    let answer: Value = client.ask(Repeat::Harmless, |node| post(node).json(&body)).await?;
    let leader = answer["leader"].as_str().unwrap_or("a node that nobody knows").to_string();
    Ok(output.print(&answer, || format!("{leader} leads"))?)
}

#[derive(Args)]
pub(crate) struct Members {
    #[command(subcommand)]
    change: Option<Change>,
}

/// A change of the members.
#[derive(Subcommand)]
enum Change {
    /// Add a node: it receives the log, and votes once it has caught up
    Add {
        #[command(flatten)]
        node: NewNode,
        /// It only receives the log
        #[arg(long)]
        learner: bool,
    },
    /// Remove a node
    Remove {
        /// Its name
        name: String,
    },
    /// Replace a node by another: the new one is added and caught up before the old one goes
    Replace {
        /// The name of the old one
        old: String,
        #[command(flatten)]
        node: NewNode,
    },
    /// Make exactly these the members
    Set {
        /// Who votes, by name
        #[arg(long, value_delimiter = ',', required = true, value_name = "NAME,NAME")]
        voters: Vec<String>,
        /// Who only receives the log, by name
        #[arg(long, value_delimiter = ',', value_name = "NAME,NAME")]
        learners: Vec<String>,
    },
}

/// A node that the cluster may not know yet.
#[derive(Args)]
struct NewNode {
    /// Its name
    name: String,
    /// Its id, which no other disk has ever had; needed if the cluster does not know it yet
    #[arg(long, requires = "raft", requires = "http")]
    id: Option<usize>,
    /// Where the other nodes reach it
    #[arg(long, value_name = "HOST:PORT", requires = "id")]
    raft: Option<String>,
    /// Where clients reach it
    #[arg(long, value_name = "HOST:PORT", requires = "id")]
    http: Option<String>,
}

impl NewNode {
    /// Its id, and its address if the cluster has to be told.
    fn find(&self, status: &NodeStatus) -> Result<(usize, Option<Address>), Failure> {
        if let (Some(id), Some(raft), Some(http)) = (self.id, &self.raft, &self.http) {
            let (raft, http) = (raft.clone(), http.clone());
            return Ok((id, Some(Address { id, name: self.name.clone(), raft, http })));
        }
        Ok((id_of(&self.name, status)?, None))
    }
}

fn id_of(name: &str, status: &NodeStatus) -> Result<usize, Failure> {
    let known = status.nodes.iter().find(|node| node.name == name);
    known.map(|node| node.id).ok_or_else(|| {
        let names: Vec<_> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        Failure::usage(format!(
            "the cluster knows of no node {name}, only of {}; give --id, --raft and --http of a new \
             one",
            names.join(", ")
        ))
    })
}

impl Change {
    /// What the members are to be, given what they are.
    fn plan(&self, status: &NodeStatus) -> Result<MembersChange, Failure> {
        let (mut voters, mut learners) = (status.voters.clone(), status.learners.clone());
        let mut nodes = Vec::new();
        match self {
            Change::Add { node, learner } => {
                let (id, address) = node.find(status)?;
                nodes.extend(address);
                let (joined, left) = if *learner {
                    (&mut learners, &mut voters)
                } else {
                    (&mut voters, &mut learners)
                };
                joined.insert(id);
                left.remove(&id);
            }
            Change::Remove { name } => {
                let id = id_of(name, status)?;
                if !voters.remove(&id) & !learners.remove(&id) {
                    return Err(Failure::usage(format!("{name} is no member")));
                }
            }
            Change::Replace { old, node } => {
                let old = id_of(old, status)?;
                let (id, address) = node.find(status)?;
                nodes.extend(address);
                if !voters.remove(&old) & !learners.remove(&old) {
                    return Err(Failure::usage(format!("the node with id {old} is no member")));
                }
                voters.insert(id);
                learners.remove(&id);
            }
            Change::Set { voters: named, learners: others } => {
                let ids = |names: &[String]| -> Result<BTreeSet<usize>, Failure> {
                    names.iter().map(|name| id_of(name, status)).collect()
                };
                (voters, learners) = (ids(named)?, ids(others)?);
            }
        }
        Ok(MembersChange { voters, learners, nodes })
    }
}

pub(crate) async fn members(
    client: &Client, output: Output, members: Members,
) -> Result<(), Failure> {
    let status: NodeStatus = client.ask(Repeat::Harmless, client.get("/status")).await?;
    let Some(change) = members.change else {
        let facts = json!({ "voters": names(&status.voters, &status.nodes),
            "learners": names(&status.learners, &status.nodes), "nodes": status.nodes });
        return Ok(output.print(&facts, || list(&status))?);
    };
    let plan = change.plan(&status)?;
    let known: Vec<_> = plan.nodes.iter().chain(&status.nodes).cloned().collect();
    let put = client.request(Method::PUT, "/cluster/members");
    let mut pieces =
        client.send(Repeat::Harmless, |node| put(node).json(&plan)).await?.bytes_stream();
    let (mut rest, mut progress) = (Vec::new(), Progress::new(output, known));
    while let Some(Ok(piece)) = pieces.next().await {
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let step = serde_json::from_slice(&line).map_err(|error| {
                Failure::other(format!("the node sent a step that is not understood: {error}"))
            })?;
            if progress.show(step)? {
                return Ok(());
            }
        }
    }
    let message = "the node that was asked is gone before the change was complete; `kv members` \
                   tells how far it came, and the same command goes on from there";
    Err(Failure::new(Kind::Unavailable, "members_not_changed", message))
}

fn list(status: &NodeStatus) -> String {
    let row = |node: &Address| {
        let part = match node.id {
            id if status.voters.contains(&id) => "voter",
            id if status.learners.contains(&id) => "learner",
            _ => "no member",
        };
        vec![
            node.name.clone(),
            node.id.to_string(),
            part.to_string(),
            node.raft.clone(),
            node.http.clone(),
        ]
    };
    let rows: Vec<_> = status.nodes.iter().map(row).collect();
    table(&["node", ">id", "part", "raft", "http"], &rows)
}

fn names(ids: &BTreeSet<usize>, nodes: &[Address]) -> Vec<String> {
    let name = |id: &usize| match nodes.iter().find(|node| node.id == *id) {
        Some(node) => node.name.clone(),
        None => format!("node with id {id}"),
    };
    ids.iter().map(name).collect()
}

/// Shows how a change of the members goes.
struct Progress {
    output: Output,
    nodes: Vec<Address>,
    bar: indicatif::ProgressBar,
}

impl Progress {
    fn new(output: Output, nodes: Vec<Address>) -> Progress {
        let bar = bar(0, "{msg} {wide_bar} {pos} of {len} entries");
        Progress { output, nodes, bar }
    }

    /// Shows a step. Says whether it was the last.
    fn show(&mut self, step: MembersStep) -> Result<bool, Failure> {
        if let MembersStep::Failed { reason } = step {
            return Err(Failure::new(Kind::Negative, "members_not_changed", reason));
        }
        let done = matches!(step, MembersStep::Done { .. });
        let name = |ids: &BTreeSet<usize>| names(ids, &self.nodes).join(", ");
        let text = match &step {
            MembersStep::LearnersAdded { ids } => format!("{} now receives the log", name(ids)),
            MembersStep::CatchingUp { id, matched, target } => {
                self.bar.set_length(*target as u64);
                self.bar.set_position(*matched as u64);
                self.bar.set_message(name(&BTreeSet::from([*id])));
                String::new()
            }
            MembersStep::Joint => "old and new voters agree together".to_string(),
            MembersStep::Done { voters, learners } if learners.is_empty() => {
                format!("done: {} vote", name(voters))
            }
            MembersStep::Done { voters, learners } => {
                format!("done: {} vote, {} only receive the log", name(voters), name(learners))
            }
            MembersStep::Failed { .. } => String::new(),
        };
        if self.output == Output::Json || !text.is_empty() {
            self.bar.suspend(|| self.output.print(&step, || text))?;
        }
        if done {
            self.bar.finish_and_clear();
        }
        Ok(done)
    }
}

#[derive(Args)]
pub(crate) struct Backup {
    /// Where to write it; - for standard output
    file: PathBuf,
}

pub(crate) async fn backup(client: &Client, output: Output, backup: Backup) -> Result<(), Failure> {
    let response = client.send(Repeat::Harmless, client.get("/backup")).await?;
    let revision =
        response.headers().get("kv-revision").and_then(|it| it.to_str().ok()?.parse().ok());
    let revision: u64 = revision.ok_or_else(|| Failure::other("the answer is no backup of kv"))?;
    let bytes = match backup.file.as_path() {
        path if path == Path::new("-") => return pour(response).await,
        path => save(response, path).await?,
    };
    let report = json!({ "file": backup.file, "revision": revision, "bytes": bytes });
    let file = backup.file.display();
    Ok(output.print(&report, || format!("{file} holds revision {revision}, {bytes} bytes"))?)
}

async fn pour(response: reqwest::Response) -> Result<(), Failure> {
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        stdout().write_all(&piece.map_err(cut)?)?;
    }
    Ok(stdout().flush()?)
}

/// Writes to a file beside, which takes the name once it is complete.
async fn save(response: reqwest::Response, path: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| {
        Failure::other(format!("{} cannot be written: {error}", path.display()))
    };
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let mut file = NamedTempFile::new_in(directory.unwrap_or(Path::new("."))).map_err(failed)?;
    let progress = spinner("{spinner} {bytes} {bytes_per_sec}");
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(cut)?;
        file.write_all(&piece).map_err(failed)?;
        progress.inc(piece.len() as u64);
    }
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    progress.finish_and_clear();
    Ok(progress.position())
}

fn cut(error: reqwest::Error) -> Failure {
    let message = format!("the backup was cut off ({error}); take it again, from another node");
    Failure::new(Kind::Unavailable, "backup_cut", message)
}
