//! How the members of a cluster change while it runs: one call, which goes on from wherever things
//! are, so that asking again after a failure is always right.

use crate::command::Action;
use crate::node::Inner;
use crate::proto::MembersRequest;
use crate::report::{MembersChange, MembersStep};
use crate::wire::stamp;
use little_raft::{Message, ReplicaID, Role, Status, USER};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// How long nothing may move before a change is given up.
const STALLED: Duration = Duration::from_secs(60);
/// How often a request is made again: it is refused while another is underway, and may get lost.
const AGAIN: Duration = Duration::from_millis(500);
/// A node that lacks no more entries than this is as good as up to date.
const CLOSE: usize = 256;

/// Why a change does not go on here.
enum Interrupted {
    /// Another node leads, or nobody.
    NotLeader,
    /// It cannot go on at all.
    Failed(String),
    /// Nobody wants to know any more.
    NotWanted,
}

/// Changes the members from whichever node.
pub(crate) fn change_anywhere(
    inner: Arc<Inner>, change: MembersChange,
) -> mpsc::Receiver<MembersStep> {
    let (steps, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut moved_at = Instant::now();
        while moved_at.elapsed() < STALLED && !steps.is_closed() {
            let result = match inner.current_leader() {
                Some(id) if id == inner.own.id => {
                    let result = drive(&inner, &change, &steps).await;
                    moved_at = Instant::now();
                    result
                }
                Some(id) => forward(&inner, id, &change, &steps, &mut moved_at).await,
                None => Err(Interrupted::NotLeader),
            };
            match result {
                Ok(()) | Err(Interrupted::NotWanted) => return,
                Err(Interrupted::Failed(reason)) => {
                    let _ = steps.send(MembersStep::Failed { reason }).await;
                    return;
                }
                Err(Interrupted::NotLeader) if inner.ended.borrow().is_some() => break,
                Err(Interrupted::NotLeader) => sleep(inner.config.timing.heartbeat).await,
            }
        }
        let reason = "no leader goes on with the change; ask again once there is one".to_string();
        let _ = steps.send(MembersStep::Failed { reason }).await;
    });
    receiver
}

/// Changes the members if this node leads. If it ceases to, the steps just end.
pub(crate) fn change_here(inner: Arc<Inner>, change: MembersChange) -> mpsc::Receiver<MembersStep> {
    let (steps, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(Interrupted::Failed(reason)) = drive(&inner, &change, &steps).await {
            let _ = steps.send(MembersStep::Failed { reason }).await;
        }
    });
    receiver
}

/// Has the leader do it.
async fn forward(
    inner: &Inner, leader: ReplicaID, change: &MembersChange, steps: &mpsc::Sender<MembersStep>,
    moved_at: &mut Instant,
) -> Result<(), Interrupted> {
    let failed = |error: serde_json::Error| Interrupted::Failed(error.to_string());
    let change = serde_json::to_string(change).map_err(failed)?;
    let client = inner.network.client(leader, AGAIN).await;
    let mut client = client.ok_or(Interrupted::NotLeader)?;
    let request = stamp(&inner.network.own, leader, MembersRequest { change });
    let answer = client.change_members(request).await;
    let mut progress = answer.map_err(|_| Interrupted::NotLeader)?.into_inner();
    while let Ok(Some(message)) = progress.message().await {
        *moved_at = Instant::now();
        let step: MembersStep = serde_json::from_str(&message.step).map_err(failed)?;
        let last = matches!(step, MembersStep::Done { .. } | MembersStep::Failed { .. });
        steps.send(step).await.map_err(|_| Interrupted::NotWanted)?;
        if last {
            return Ok(());
        }
    }
    Err(Interrupted::NotLeader)
}

/// Changes the members, at the leader.
async fn drive(
    inner: &Arc<Inner>, change: &MembersChange, steps: &mpsc::Sender<MembersStep>,
) -> Result<(), Interrupted> {
    check(inner, change)?;
    introduce(inner, change).await?;
    let raft = inner.raft.clone();
    let mut driver = Driver { inner, change, steps, raft };
    driver.add_learners().await?;
    driver.catch_up().await?;
    driver.promote().await
}

/// Refuses what makes no sense.
fn check(inner: &Inner, change: &MembersChange) -> Result<(), Interrupted> {
    let failed = |reason: String| Err(Interrupted::Failed(reason));
    if change.voters.is_empty() {
        return failed("somebody must vote; name at least one voter".to_string());
    }
    if let Some(id) = change.voters.intersection(&change.learners).next() {
        return failed(format!("node {id} cannot both vote and only learn; name it once"));
    }
    let known: BTreeSet<_> = inner.network.addresses().iter().map(|node| node.id).collect();
    let named: BTreeSet<_> = change.nodes.iter().map(|node| node.id).collect();
    if named.contains(&USER) {
        return failed(format!("the id {USER} stands for users; give the new node another"));
    }
    let all = change.voters.union(&change.learners);
    match all.copied().find(|id| !known.contains(id) && !named.contains(id)) {
        Some(id) => failed(format!("nobody knows where node {id} is; give its addresses too")),
        None => Ok(()),
    }
}

/// Tells everybody where the new nodes are.
async fn introduce(inner: &Inner, change: &MembersChange) -> Result<(), Interrupted> {
    let known = inner.network.addresses();
    let mut nodes = change.nodes.clone();
    nodes.retain(|node| !known.contains(node));
    if nodes.is_empty() {
        return Ok(());
    }
    let told = inner.perform(Action::Introduce { nodes }, true).await;
    told.map(drop).map_err(|error| {
        Interrupted::Failed(format!("cannot tell where the new nodes are: {error}; ask again"))
    })
}

/// Whether a node is receiving a snapshot, which may take its time.
fn installs(status: &Status, id: ReplicaID) -> bool {
    status.peers.get(&id).is_some_and(|peer| {
        let lately = status.now.saturating_sub(peer.heard) < STALLED / 10;
        peer.installing.is_some() && lately
    })
}

struct Driver<'a> {
    inner: &'a Arc<Inner>,
    change: &'a MembersChange,
    steps: &'a mpsc::Sender<MembersStep>,
    raft: watch::Receiver<Option<Status>>,
}

impl Driver<'_> {
    async fn tell(&self, step: MembersStep) -> Result<(), Interrupted> {
        self.steps.send(step).await.map_err(|_| Interrupted::NotWanted)
    }

    /// How things are, as long as this node leads.
    fn leading(&self) -> Result<Status, Interrupted> {
        let status = self.raft.borrow().clone().filter(|status| status.role == Role::Leader);
        status.ok_or(Interrupted::NotLeader)
    }

    /// The nodes that are to vote and do not yet.
    fn newcomers(&self, status: &Status) -> BTreeSet<ReplicaID> {
        self.change.voters.difference(&status.membership.voters).copied().collect()
    }

    /// Asks for a configuration until it is there, whatever is in the way first.
    async fn ask(
        &mut self, wanted: impl Fn(&Status) -> Option<(Vec<ReplicaID>, Vec<ReplicaID>)>,
    ) -> Result<(), Interrupted> {
        let began = Instant::now();
        loop {
            let status = self.leading()?;
            let Some((voters, learners)) = wanted(&status) else { return Ok(()) };
            if began.elapsed() > STALLED {
                let reason = format!(
                    "the cluster is still {:?}; look at the status of the others",
                    status.membership
                );
                return Err(Interrupted::Failed(reason));
            }
            if status.membership.outgoing.is_empty() {
                self.inner.request(Message::change_membership(voters, learners));
            }
            let arrived = |status: &Option<Status>| {
                status.as_ref().is_none_or(|it| it.role != Role::Leader || wanted(it).is_none())
            };
            // Refusals are silent.
            let _ = timeout(AGAIN, self.raft.wait_for(arrived)).await;
        }
    }

    /// Waits until the configuration is one that is wanted, not joint any more, and committed.
    async fn settle(&mut self, wanted: impl Fn(&Status) -> bool) -> Result<(), Interrupted> {
        let mut index = None;
        loop {
            let status = self.raft.borrow_and_update().clone().ok_or(Interrupted::NotLeader)?;
            let settled = wanted(&status) && status.membership.outgoing.is_empty();
            if settled && status.commit >= *index.get_or_insert(status.last_index) {
                return Ok(());
            }
            // A leader that is not in the new configuration leads until that is committed.
            if status.role != Role::Leader || !wanted(&status) {
                return Err(Interrupted::NotLeader);
            }
            let _ = timeout(AGAIN, self.raft.changed()).await;
        }
    }

    /// New voters only learn at first, so that nobody waits for them.
    async fn add_learners(&mut self) -> Result<(), Interrupted> {
        let newcomers = self.newcomers(&self.leading()?);
        let missing = |status: &Status| -> BTreeSet<ReplicaID> {
            let members = status.membership.members();
            newcomers.iter().copied().filter(|id| !members.contains(id)).collect()
        };
        let ids = missing(&self.leading()?);
        if ids.is_empty() {
            return Ok(());
        }
        self.ask(|status| {
            let learners = status.membership.learners.union(&missing(status)).copied().collect();
            let voters = status.membership.voters.iter().copied().collect();
            (!missing(status).is_empty()).then_some((voters, learners))
        })
        .await?;
        self.tell(MembersStep::LearnersAdded { ids }).await?;
        self.settle(|_| true).await
    }

    /// Waits until every new voter has nearly all of the log.
    async fn catch_up(&mut self) -> Result<(), Interrupted> {
        let (mut seen, mut moved_at) = (BTreeMap::new(), Instant::now());
        loop {
            let status = self.leading()?;
            let matched = |id: &ReplicaID| status.peers.get(id).map_or(0, |peer| peer.matched);
            let target = status.last_index.saturating_sub(CLOSE).max(1);
            let newcomers = self.newcomers(&status);
            for id in newcomers.iter().filter(|id| **id != status.id) {
                let (id, matched) = (*id, matched(id));
                if installs(&status, id) {
                    moved_at = Instant::now();
                }
                if seen.insert(id, matched) != Some(matched) {
                    moved_at = Instant::now();
                    self.tell(MembersStep::CatchingUp { id, matched, target }).await?;
                }
            }
            let behind = newcomers.iter().find(|id| **id != status.id && matched(id) < target);
            let Some(id) = behind else { return Ok(()) };
            if moved_at.elapsed() > STALLED {
                let link = self.inner.network.link_state(*id);
                let why = link.problem.unwrap_or_else(|| "it does not answer".to_string());
                let reason = format!(
                    "node {id} does not catch up: {why}. It stays a learner; ask again when it runs"
                );
                return Err(Interrupted::Failed(reason));
            }
            let _ = timeout(AGAIN, self.raft.changed()).await;
        }
    }

    /// Lets the new voters vote and the others go.
    async fn promote(&mut self) -> Result<(), Interrupted> {
        let MembersChange { voters, learners, .. } = self.change;
        let there = |status: &Status| {
            let now = &status.membership;
            (&now.voters, &now.learners) == (voters, learners)
        };
        let lists =
            || (voters.iter().copied().collect(), learners.iter().copied().collect::<Vec<_>>());
        self.ask(|status| (!there(status)).then(lists)).await?;
        let membership = self.leading()?.membership;
        // While nobody but learners comes and goes the old voters are the new ones.
        if !membership.outgoing.is_empty() && membership.outgoing != membership.voters {
            self.tell(MembersStep::Joint).await?;
        }
        self.settle(there).await?;
        let (voters, learners) = (voters.clone(), learners.clone());
        self.tell(MembersStep::Done { voters, learners }).await
    }
}
