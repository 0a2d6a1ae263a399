//! A cluster of replicas in one thread, with messages, time and disks in the hands of a script.

mod commands;
mod laws;
mod text;

use laws::Laws;
use little_raft::raft::{Config, Raft, Role};
use little_raft::{
    Index, LogId, Membership, ReadState, ReplicaID, Snapshot, StateMachineTransition,
};
use little_raft::{Term, TransitionAbandonedReason, TransitionState};
use little_raft_sim::append;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use text::{Payload, entries, show_body, show_change, show_id, show_membership, show_runs};

/// A transition is nothing but its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transition(String);

impl StateMachineTransition for Transition {
    type TransitionID = String;
    fn get_id(&self) -> String {
        self.0.clone()
    }
}

/// The name of every leader's first transition.
const NOOP: &str = "noop";

/// The state is the names of what was applied.
type State = Vec<String>;
type Message = little_raft::Message<Transition, State>;
type Body = little_raft::Body<Transition, State>;
type Change = little_raft::Change<Transition, State>;
type Run = little_raft::Run<Transition>;

/// What has become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Underway,
    Held,
    Gone,
}

/// A message that was sent. Its number is its place, from 1.
struct Envelope {
    to: ReplicaID,
    message: Message,
    fate: Fate,
    sent_at: Duration,
}

/// What is told of a replica whenever it changes.
type News = (Term, Role, Option<ReplicaID>, Arc<Membership>);

/// The reads in the order in which they were asked: where, the ticket, and what was committed then.
/// Their names are `r1`, `r2`, …
type Reads = Vec<(ReplicaID, u64, Index)>;

/// One replica with its disk and its state machine.
struct Node {
    config: Config,
    raft: Option<Raft<Transition, State>>,
    saved: Change,
    state: State,
    clock: Duration,
    starts: u64,
    /// Its next save fails.
    fails: bool,
    /// It takes in everything but has no turn.
    paused: bool,
    /// It applies only when told to.
    slow: bool,
    told: Option<News>,
    commit: Index,
}

/// The cluster that a script drives.
#[derive(Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<ReplicaID, Node>,
    sent: Vec<Envelope>,
    cuts: BTreeSet<(ReplicaID, ReplicaID)>,
    laws: Laws,
    reads: Reads,
    time: Duration,
    /// Messages and saves are not printed.
    terse: bool,
    output: Vec<String>,
}

impl Cluster {
    /// What has happened since this was asked last.
    pub(crate) fn take_output(&mut self) -> Vec<String> {
        std::mem::take(&mut self.output)
    }

    fn node(&mut self, id: ReplicaID) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no n{id}"))
    }

    fn raft(&mut self, id: ReplicaID) -> &mut Raft<Transition, State> {
        self.node(id).raft.as_mut().unwrap_or_else(|| panic!("n{id} is down"))
    }

    /// Prints what a replica does, after its name and term.
    fn tell(&mut self, id: ReplicaID, what: &str) {
        let term = self.raft(id).me.term;
        self.output.push(format!("n{id}@{term} {what}"));
    }

    fn tell_detail(&mut self, id: ReplicaID, what: &str) {
        if !self.terse {
            self.tell(id, what);
        }
    }

    /// Starts a replica from what it has saved, with a clock of its own that begins anew.
    fn start(&mut self, id: ReplicaID) {
        let node = self.node(id);
        (node.starts, node.clock) = (node.starts + 1, Duration::ZERO);
        node.config.seed = id as u64 + 1000 * node.starts;
        let (config, saved) = (node.config.clone(), node.saved.clone());
        let raft = Raft::new(config, Transition(NOOP.into()), saved, node.clock);
        let raft = raft.unwrap_or_else(|error| panic!("n{id} does not start: {error}"));
        let (status, snapshot) = (raft.me.clone(), node.saved.snapshot.clone());
        (node.commit, node.state) = (status.commit, snapshot.map_or(vec![], |it| it.data));
        node.told = Some((status.term, status.role, status.leader, status.membership));
        (node.raft, node.paused, node.fails) = (Some(raft), false, false);
    }

    fn stop(&mut self, id: ReplicaID) {
        self.node(id).raft = None;
        self.laws.stops(id);
    }

    /// What a replica does once it has taken in all inputs: as [`little_raft::Replica`] does it.
    fn turn(&mut self, id: ReplicaID) {
        if self.node(id).paused {
            return;
        }
        let clock = self.node(id).clock;
        let outputs = self.raft(id).outputs(clock);
        let appended = outputs.change.as_ref().map_or(Vec::new(), |change| change.runs.clone());
        self.tell_news(id);
        self.send_all(id, outputs.appends);
        if let Some(change) = outputs.change
            && !self.save(id, change)
        {
            return self.stop(id);
        }
        self.tell_news(id);
        self.send_all(id, outputs.messages);
        if let Some(snapshot) = outputs.restore {
            self.restore(id, snapshot);
        }
        for (transitions, state) in outputs.states {
            match state {
                TransitionState::Queued => self.queues(id, &transitions, &appended),
                TransitionState::Abandoned(reason) => self.abandons(id, &transitions, reason),
                other => panic!("{other:?} is for the loop to say"),
            }
        }
        self.commit(id);
        if !self.node(id).slow {
            self.apply(id, usize::MAX);
        }
        self.finish_turn(id);
    }

    /// What is queued is among what the same turn appended, unless the same turn removed it again.
    fn queues(&mut self, id: ReplicaID, transitions: &Arc<Vec<Transition>>, appended: &[Run]) {
        let Some(run) = appended.iter().find(|run| Arc::ptr_eq(&run.transitions, transitions))
        else {
            let names = transitions.iter().map(|it| &it.0);
            return names.for_each(|name| self.laws.queues(id, LogId::default(), name));
        };
        if run.membership.is_none() {
            self.tell_detail(id, &format!("queues {}", show_runs(std::slice::from_ref(run))));
        }
        for (entry, payload) in entries(std::slice::from_ref(run)) {
            if let Payload::Transition(name) = payload {
                self.laws.queues(id, entry, &name);
            }
        }
    }

    fn abandons(
        &mut self, id: ReplicaID, transitions: &[Transition], reason: TransitionAbandonedReason,
    ) {
        for Transition(name) in transitions {
            if reason == TransitionAbandonedReason::NotLeader {
                self.tell(id, &format!("refuses {name}"));
                continue;
            }
            self.tell(id, &format!("abandons {name}: {reason:?}"));
            let for_good = reason == TransitionAbandonedReason::ConflictWithLeader;
            self.laws.abandons(id, name, for_good);
        }
    }

    fn finish_turn(&mut self, id: ReplicaID) {
        self.answer_reads(id);
        let (data, mut taken) = (self.node(id).state.clone(), None);
        let compacted = self.raft(id).compact(|last_included_index, last_included_term| {
            let snapshot = Snapshot { last_included_index, last_included_term, data };
            taken.insert(snapshot).clone()
        });
        compacted.expect("it is the one that was asked for");
        if let Some(snapshot) = taken {
            self.laws.restores(id, &snapshot);
            self.tell_detail(id, &format!("takes a snapshot at {}", show_id(snapshot.last())));
        }
        self.check(id);
    }

    fn tell_news(&mut self, id: ReplicaID) {
        let status = self.raft(id).me.clone();
        let news = (status.term, status.role, status.leader, status.membership);
        let Some(told) = self.node(id).told.replace(news.clone()) else { return };
        if (told.0, told.1, told.2) != (news.0, news.1, news.2) {
            let part = match (news.1, news.2) {
                (Role::Leader, _) => "becomes leader".into(),
                (Role::Candidate, _) => "becomes candidate".into(),
                (Role::PreCandidate, _) => "becomes pre-candidate".into(),
                (Role::Follower, Some(leader)) => format!("follows n{leader}"),
                (Role::Follower, None) => "follows nobody".into(),
            };
            self.tell(id, &part);
        }
        if told.3 != news.3 {
            self.tell(id, &format!("is in configuration {}", show_membership(&news.3)));
        }
    }

    fn send_all(&mut self, id: ReplicaID, messages: Vec<(ReplicaID, Message)>) {
        for (to, message) in messages {
            let lost = self.cuts.contains(&(id, to))
                || self.nodes.get(&to).is_none_or(|node| node.raft.is_none());
            let term = message.term;
            assert_eq!(message.from_id, id, "law: a replica speaks for itself");
            self.laws.sends((id, to), term, &message.body, &self.nodes[&id].saved);
            let text = show_body(&message.body, |context| self.read_name(context));
            let own = self.raft(id).me.term;
            let at = if term == own { String::new() } else { format!(" in term {term}") };
            let (arrow, number) = (if lost { "⇥" } else { "→" }, self.sent.len() + 1);
            self.tell_detail(id, &format!("{arrow} n{to} #{number} {text}{at}"));
            let (fate, sent_at) = (if lost { Fate::Gone } else { Fate::Underway }, self.time);
            self.sent.push(Envelope { to, message, fate, sent_at });
        }
    }

    /// Saves a change, if this save does not fail.
    fn save(&mut self, id: ReplicaID, change: Change) -> bool {
        let text = show_change(&change, &self.node(id).saved);
        if self.node(id).fails {
            self.tell(id, &format!("fails to save {text}, and stops"));
            return false;
        }
        self.tell_detail(id, &format!("saves {text}"));
        let node = self.nodes.get_mut(&id).expect("who saves is there");
        let before = node.saved.clone();
        append(&mut node.saved, change);
        self.laws.saves(id, &before, &node.saved);
        self.raft(id).saved();
        true
    }

    fn restore(&mut self, id: ReplicaID, snapshot: Snapshot<State>) {
        self.laws.restores(id, &snapshot);
        let text = format!("restores {} [{}]", show_id(snapshot.last()), snapshot.data.join(" "));
        self.tell(id, &text);
        let node = self.node(id);
        (node.state, node.commit) = (snapshot.data, snapshot.last_included_index);
    }

    /// Notes how far a replica has committed.
    fn commit(&mut self, id: ReplicaID) {
        let status = self.raft(id).me.clone();
        let node = &self.nodes[&id];
        assert!(node.commit <= status.commit, "law: n{id}'s commit index never falls");
        if node.commit == status.commit {
            return;
        }
        self.laws.commits(status.term, &node.saved, node.commit + 1, status.commit);
        if status.role == Role::Leader {
            let held = entries(&node.saved.runs).into_iter().find(|it| it.0.index == status.commit);
            let (last, _) = held.expect("a leader commits what is in its log");
            let all = self.nodes.iter().map(|(id, node)| (*id, &node.saved)).collect();
            Laws::leader_commits(&status.membership, last, &all);
        }
        self.node(id).commit = status.commit;
        self.tell_detail(id, &format!("commits {}", status.commit));
    }

    /// Applies what is committed, `limit` transitions at most.
    fn apply(&mut self, id: ReplicaID, mut limit: usize) {
        while limit > 0 && !self.raft(id).committed().is_empty() {
            let index = self.raft(id).me.applied + 1;
            let slice: Vec<_> = self.raft(id).committed().iter().take(limit).cloned().collect();
            for (index, Transition(name)) in (index..).zip(&slice) {
                self.laws.applies(id, index, name);
                self.node(id).state.push(name.clone());
            }
            let names: Vec<&str> = slice.iter().map(|it| it.0.as_str()).collect();
            let names = match &names[..] {
                [first, .., last] if names.len() > 8 => format!("{first}..{last}"),
                _ => names.join(" "),
            };
            self.tell_detail(id, &format!("applies {names}"));
            self.raft(id).applied(slice.len());
            limit -= slice.len();
        }
    }

    fn answer_reads(&mut self, id: ReplicaID) {
        for (ticket, state) in self.raft(id).take_reads() {
            let name = self.read_name(ticket);
            if state == ReadState::Abandoned {
                self.tell(id, &format!("abandons {name}"));
                continue;
            }
            let asked = self.reads.iter().find(|it| (it.0, it.1) == (id, ticket));
            let (_, _, committed) = *asked.expect("law: only what was asked is answered");
            let applied = self.raft(id).me.applied;
            Laws::reads(id, committed, applied);
            let state = self.node(id).state.join(" ");
            self.tell(id, &format!("answers {name}: [{state}]"));
        }
    }

    fn read_name(&self, context: u64) -> String {
        let place = self.reads.iter().position(|(_, ticket, _)| *ticket == context);
        place.map_or(context.to_string(), |place| format!("r{}", place + 1))
    }

    /// The laws that hold after every turn.
    fn check(&mut self, id: ReplicaID) {
        let status = self.raft(id).me.clone();
        if status.role != Role::Leader {
            return;
        }
        self.laws.leads(id, status.term, Some(&self.nodes[&id].saved));
        for (peer, progress) in &status.peers {
            if let Some(node) = self.nodes.get(peer) {
                Laws::matches(*peer, progress.matched, &node.saved);
            }
        }
    }

    /// Delivers a message, whatever has become of it before.
    fn deliver(&mut self, place: usize) {
        let envelope = &mut self.sent[place];
        envelope.fate = Fate::Gone;
        let (to, message) = (envelope.to, envelope.message.clone());
        if self.node(to).raft.is_none() {
            self.output.push(format!("n{to} is down: #{} is lost", place + 1));
        } else {
            self.step(to, message);
        }
    }

    fn step(&mut self, id: ReplicaID, message: Message) {
        let clock = self.node(id).clock;
        self.take_in(id, |raft, _| raft.step(clock, message));
    }

    /// A turn with one input. In a script a replica looks at its clock only when told to, so unless
    /// the input brings the deadline nearer it is put off until after the turn.
    fn take_in(
        &mut self, id: ReplicaID, input: impl FnOnce(&mut Raft<Transition, State>, &mut Reads),
    ) {
        let raft = self.nodes.get_mut(&id).and_then(|node| node.raft.as_mut());
        let raft = raft.unwrap_or_else(|| panic!("n{id} is down"));
        let deadline = std::mem::replace(&mut raft.me.deadline, Duration::MAX);
        input(raft, &mut self.reads);
        self.turn(id);
        let raft = self.node(id).raft.as_mut().filter(|raft| raft.me.deadline == Duration::MAX);
        raft.into_iter().for_each(|raft| raft.me.deadline = deadline);
    }

    fn advance(&mut self, time: Duration) {
        self.time += time;
        self.nodes.values_mut().for_each(|node| node.clock += time);
    }

    /// Lets a replica look at its clock.
    fn tick(&mut self, id: ReplicaID) {
        if self.node(id).raft.is_some() {
            self.turn(id);
        }
    }

    /// Delivers messages that are at least so old, and those sent meanwhile, until there are none.
    fn stabilize(&mut self, age: Duration) {
        let mut place = 0;
        let first = self.sent.len();
        while place < self.sent.len() {
            assert!(place < first + 10_000, "the replicas never stop talking");
            let Envelope { fate, sent_at, .. } = self.sent[place];
            if fate == Fate::Underway && sent_at + age <= self.time {
                self.deliver(place);
            }
            place += 1;
        }
    }
}
