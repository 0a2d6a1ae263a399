//! How a node is, put together from what its parts know.

use crate::node::Inner;
use crate::report::*;
use crate::tallies::Tallies;
use crate::transport::locked;
use little_raft::{Progress, ReplicaID, Role, Status};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{MissedTickBehavior, interval};

/// Elections that are remembered.
const ELECTIONS: usize = 32;
/// How often the directory is measured.
const MEASURE: Duration = Duration::from_secs(5);

/// Tells how a node is as long as it runs, and what follows from it: where others are, and whose
/// disk may be forgotten.
pub(crate) async fn report(inner: Arc<Inner>) {
    let mut raft = inner.raft.clone();
    let (mut ended, mut stopped) = (inner.ended.clone(), inner.network.stopped());
    let mut nodes = locked(&inner.machine).watch_nodes();
    // The replica may have read some before anybody listened.
    nodes.mark_changed();
    let mut measure = interval(MEASURE);
    measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = raft.changed() => if news.is_err() { break },
            _ = nodes.changed() => {
                let nodes = nodes.borrow_and_update().clone();
                inner.network.introduce(&nodes);
            }
            _ = measure.tick() => inner.measure().await,
            () = async { _ = ended.wait_for(Option::is_some).await } => break,
            () = async { _ = stopped.wait_for(|stopped| *stopped).await } => break,
        }
        let status = raft.borrow_and_update().clone();
        status.iter().for_each(|status| inner.note(status));
        inner.status.send_replace(Arc::new(inner.node_status()));
    }
    inner.status.send_replace(Arc::new(inner.node_status()));
}

impl Inner {
    /// Takes note of what is new.
    fn note(&self, status: &Status) {
        let mut elections = locked(&self.elections);
        let last = elections.back().map(|last| (last.term, last.leader));
        if let Some(leader) = status.leader
            && last != Some((status.term, leader))
        {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let unix_milliseconds = now.as_millis() as u64;
            elections.push_back(Election { term: status.term, leader, unix_milliseconds });
            let surplus = elections.len().saturating_sub(ELECTIONS);
            elections.drain(..surplus);
            Tallies::add(&self.tallies.elections, 1);
        }
        drop(elections);
        // A configuration may still be undone as long as it is not committed.
        let settled = status.membership.outgoing.is_empty() && status.commit == status.last_index;
        if settled && !status.membership.voters.is_empty() {
            let members = status.membership.members();
            self.network.forget(|id| !members.contains(&id));
        }
    }

    /// Takes note of how much space the node takes.
    async fn measure(&self) {
        let directory = self.directory.clone();
        let bytes = tokio::task::spawn_blocking(move || bytes_in(&directory)).await;
        Tallies::set(&self.tallies.disk_bytes, bytes.unwrap_or_default());
    }

    pub(crate) fn counters(&self) -> Counters {
        let free = self.writes.available_permits() as u64;
        let limit = self.config.limits.writes_in_flight as u64;
        Counters { writes_in_flight: limit.saturating_sub(free), ..self.tallies.counters() }
    }

    pub(crate) fn node_status(&self) -> NodeStatus {
        let (store, snapshot) = {
            let machine = locked(&self.machine);
            (machine.store(), machine.latest_snapshot())
        };
        let own = NodeStatus {
            cluster: self.config.cluster.clone(),
            id: self.own.id,
            name: self.own.name.clone(),
            role: "follower".to_string(),
            saved_index: Tallies::get(&self.tallies.saved_index) as usize,
            revision: store.revision(),
            keys: store.len(),
            sessions: store.sessions(),
            snapshot,
            nodes: self.network.addresses(),
            elections: locked(&self.elections).iter().cloned().collect(),
            uptime_milliseconds: self.started.elapsed().as_millis() as u64,
            disk_bytes: Tallies::get(&self.tallies.disk_bytes),
            memory_bytes: memory_bytes(),
            counters: self.counters(),
            ..NodeStatus::default()
        };
        let raft = self.raft.borrow().clone();
        let status = raft.map_or(own.clone(), |raft| self.with_raft(own, &raft));
        match &*self.ended.borrow() {
            Some(failure) => NodeStatus {
                role: "stopped".to_string(),
                leader: None,
                failure: failure.clone(),
                ..status
            },
            None => status,
        }
    }

    fn with_raft(&self, own: NodeStatus, raft: &Status) -> NodeStatus {
        let peer = |(id, progress): (&ReplicaID, &Progress)| self.peer(*id, progress, raft);
        let role = match raft.role {
            Role::Follower => "follower",
            Role::PreCandidate => "pre_candidate",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        };
        NodeStatus {
            role: role.to_string(),
            term: raft.term,
            leader: raft.leader,
            voters: raft.membership.voters.clone(),
            outgoing: raft.membership.outgoing.clone(),
            learners: raft.membership.learners.clone(),
            first_index: raft.first_index,
            last_index: raft.last_index,
            commit_index: raft.commit,
            applied_index: raft.applied,
            peers: raft.peers.iter().map(peer).collect(),
            ..own
        }
    }

    fn peer(&self, id: ReplicaID, progress: &Progress, raft: &Status) -> PeerStatus {
        let activity = match progress {
            Progress { installing: Some(_), .. } => "installing",
            Progress { probing: true, .. } => "probing",
            _ => "replicating",
        };
        let link = self.network.link_state(id);
        PeerStatus {
            id,
            matched: progress.matched,
            next: progress.next,
            lag: raft.last_index.saturating_sub(progress.matched),
            activity: activity.to_string(),
            heard_milliseconds_ago: raft.now.saturating_sub(progress.heard).as_millis() as u64,
            connected: link.connected,
            problem: link.problem,
        }
    }
}

/// Bytes in the files of a directory, as far as they can be seen.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// Bytes of memory that this process takes, where the system tells in a file.
fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}
