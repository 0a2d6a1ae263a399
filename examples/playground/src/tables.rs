//! How things are, in tables.

use crate::cluster::Cluster;
use crate::store::Covered;
use little_raft::{Membership, Progress, ReplicaID, Role, Status};
use std::collections::BTreeSet;
use std::time::Instant;

pub(crate) fn list(ids: &BTreeSet<ReplicaID>) -> String {
    ids.iter().map(ReplicaID::to_string).collect::<Vec<_>>().join(" ")
}

pub(crate) fn voters(membership: &Membership) -> String {
    match membership.outgoing.is_empty() {
        true => list(&membership.voters),
        false => format!("{} and of {}", list(&membership.voters), list(&membership.outgoing)),
    }
}

pub(crate) fn members(membership: &Membership) -> String {
    let mut text = format!("voters: {}", list(&membership.voters));
    if !membership.outgoing.is_empty() {
        text += &format!("; on the way from: {}", list(&membership.outgoing));
    }
    if !membership.learners.is_empty() {
        text += &format!("; learners: {}", list(&membership.learners));
    }
    text
}

/// Aligns the columns; the first row is the head.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell =
        |row: &Vec<String>, column: usize| row.get(column).map_or(0, |it| it.chars().count());
    let widths = (0..columns).map(|column| rows.iter().map(|row| cell(row, column)).max());
    let widths = widths.map(Option::unwrap_or_default).collect::<Vec<_>>();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
        cells.collect::<String>().trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row<const N: usize>(cells: [&dyn ToString; N]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}

fn role(status: &Status) -> &'static str {
    match status.role {
        Role::Leader => "leader",
        Role::Candidate => "candidate",
        Role::PreCandidate => "pre-candidate",
        Role::Follower if status.membership.learners.contains(&status.id) => "learner",
        Role::Follower if !status.membership.members().contains(&status.id) => "no member",
        Role::Follower => "follower",
    }
}

/// How each replica is, who the members are, what is cut, and how the leader sees its peers.
pub(crate) fn status(cluster: &Cluster) -> String {
    cluster.refresh();
    let mut rows = vec![row([
        &"replica", &"role", &"term", &"follows", &"last", &"commit", &"applied", &"keys",
        &"digest",
    ])];
    for id in cluster.ids() {
        let (Some(status), Some(state)) = (cluster.status(id), cluster.state(id)) else {
            rows.push(row([&id, &if cluster.is_running(id) { "starting" } else { "stopped" }]));
            continue;
        };
        let leader = status.leader.map_or("nobody".to_string(), |leader| leader.to_string());
        let (keys, digest) = (state.keys(), format!("{:08x}", state.digest()));
        let Status { term, last_index, commit, applied, .. } = status;
        let role = role(&status);
        rows.push(row([
            &id,
            &role,
            &term,
            &leader,
            &last_index,
            &commit,
            &applied,
            &keys,
            &digest,
        ]));
    }
    let told = cluster.board().look();
    let mut text = table(&rows);
    if let Some(membership) = cluster.membership(&told) {
        text += &format!("\n{}", members(&membership));
    }
    let cuts = cluster.network().cuts().into_iter().map(|(one, other)| format!("{one}-{other}"));
    let cuts = cuts.collect::<Vec<_>>().join(" ");
    if !cuts.is_empty() {
        text += &format!("\ncut: {cuts}");
    }
    let leading = told.leader().and_then(|leader| told.status(leader.id));
    text + &leading.map(peers).unwrap_or_default()
}

/// How a leader sees its peers.
fn peers(leader: &Status) -> String {
    let peer = |(id, peer): (&ReplicaID, &Progress)| {
        let (doing, parts) = match peer {
            Progress { installing: Some(_), next, .. } => {
                (format!("sending the snapshot at {} to", next - 1), "")
            }
            Progress { probing: true, .. } => {
                ("probing where the log of".to_string(), " parts from its own")
            }
            _ => ("replicating to".to_string(), ""),
        };
        let silent = leader.now.saturating_sub(peer.heard).as_millis();
        format!(
            "\n{} is {doing} {id}{parts}: has up to {}, heard {silent} ms ago",
            leader.id, peer.matched
        )
    };
    leader.peers.iter().map(peer).collect()
}

/// What the snapshots cover, and what is left of the logs.
pub(crate) fn snapshots(cluster: &Cluster) -> String {
    cluster.refresh();
    let mut rows = vec![row([&"replica", &"snapshot", &"log"])];
    for id in cluster.ids() {
        let Some(status) = cluster.status(id) else {
            rows.push(row([&id, &"stopped"]));
            continue;
        };
        let snapshot = match cluster.look_into(id, |store| store.snapshot()).flatten() {
            Some(Covered { index, keys, installed }) => {
                let origin = if installed { "installed" } else { "taken" };
                format!("{origin} at entry {index}, {keys} keys")
            }
            None => "none yet".to_string(),
        };
        let (first, last) = (status.first_index, status.last_index);
        let log = match first - 1 {
            0 => format!("entries {first} to {last}"),
            compacted => format!("entries {first} to {last}, {compacted} compacted"),
        };
        rows.push(row([&id, &snapshot, &log]));
    }
    let rule = match cluster.snapshot_delta() {
        0 => "no snapshots are taken: --snapshot-delta is 0".to_string(),
        delta => format!(
            "a snapshot is taken every {delta} entries, and as many are kept before it for the slow"
        ),
    };
    format!("{}\n{rule}", table(&rows))
}

/// Waits until the members have applied all that is committed, and compares them.
pub(crate) fn agreement(cluster: &Cluster, deadline: Instant) -> Result<String, String> {
    let caught_up = cluster.catch_up(deadline);
    let mut rows = vec![row([&"replica", &"keys", &"digest"])];
    let mut states = BTreeSet::new();
    for id in cluster.ids() {
        match cluster.state(id) {
            Some(state) if caught_up.contains(&id) => {
                let (keys, digest) = (state.keys(), state.digest());
                rows.push(row([&id, &keys, &format!("{digest:08x}")]));
                states.insert((keys, digest));
            }
            Some(_) => rows.push(row([&id, &"cut off, behind, or no member"])),
            None => rows.push(row([&id, &"stopped"])),
        }
    }
    let table = table(&rows);
    match (states.len(), caught_up.len()) {
        (1, 1) => Ok(table),
        (1, count) => Ok(format!("{table}\nall {count} agree")),
        (0, _) => Err(format!("{table}\nno replica has caught up in time")),
        _ => Err(format!("{table}\nTHE REPLICAS DIFFER, which is a bug: please report it")),
    }
}
