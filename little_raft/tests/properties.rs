//! Properties, each against a definition so plain that it can be checked by eye: quorums against
//! the enumeration of majorities, the log and what is saved of it against a vector.

use little_raft::{
    Body, Change, Config, Index, LogId, Membership, Message, Raft, ReplicaID, Role, Run, Snapshot,
    StateMachineTransition, Status, Storage, Term,
};
use little_raft_sim::{MemoryStorage, append};
use proptest::prelude::*;
use proptest::sample::Index as Choice;
use proptest::test_runner::TestRunner;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

// Quorums.

/// The greatest value that all of some majority of each half have reached, by looking at every
/// subset of every half.
fn naive_quorum<V: Ord + Copy + Default>(halves: &[Vec<V>]) -> V {
    let reached_by_majority = |half: &Vec<V>| {
        let subsets = 0..1_u32 << half.len();
        let majorities = subsets.filter(|set| 2 * set.count_ones() as usize > half.len());
        let reached_by_all = |set: u32| {
            let members = half.iter().enumerate().filter(|(place, _)| set & 1 << place != 0);
            members.map(|(_, value)| *value).min().unwrap_or_default()
        };
        majorities.map(reached_by_all).max().unwrap_or_default()
    };
    halves.iter().map(reached_by_majority).min().unwrap_or_default()
}

fn check_quorum<V: Ord + Copy + Default + std::fmt::Debug>(membership: &Membership, values: &[V]) {
    let half = |ids: &BTreeSet<ReplicaID>| ids.iter().map(|&id| values[id]).collect::<Vec<V>>();
    let mut halves = vec![half(&membership.voters)];
    if !membership.outgoing.is_empty() {
        halves.push(half(&membership.outgoing));
    }
    assert_eq!(membership.quorum(|id| values[id]), naive_quorum(&halves), "{membership:?}");
}

/// Up to seven voters among twelve replicas, in joint configurations as many outgoing ones, which
/// may be the same, others, or some of both. Who does not vote may be a learner, who must not count.
fn membership() -> impl Strategy<Value = Membership> {
    let half = |least| prop::collection::btree_set(0_usize..12, least..=7_usize);
    (half(1), prop_oneof![Just(BTreeSet::new()), half(1)]).prop_map(|(voters, outgoing)| {
        let votes = |id: &usize| voters.contains(id) || outgoing.contains(id);
        let learners = (0..12).filter(|id| !votes(id)).collect();
        Membership { voters, outgoing, learners }
    })
}

proptest! {
    #[test]
    fn a_quorum_of_indices_is_what_a_majority_of_each_half_has_reached(
        membership in membership(),
        matched in prop::collection::vec(0_usize..9, 12),
    ) {
        check_quorum(&membership, &matched);
    }

    #[test]
    fn a_quorum_of_votes_is_a_majority_of_each_half(
        membership in membership(),
        votes in prop::collection::vec(any::<bool>(), 12),
    ) {
        check_quorum(&membership, &votes);
    }
}

/// P15: with one to seven voters, whoever answers, the quorum is more than half: of the replica
/// itself and the others together, not of the others.
#[test]
fn a_quorum_is_more_than_half_for_every_set_of_answers() {
    for count in 1..=7_usize {
        let membership = Membership { voters: (0..count).collect(), ..Membership::default() };
        for answers in 0..1_u32 << count {
            let more_than_half = 2 * answers.count_ones() as usize > count;
            assert_eq!(membership.quorum(|id| answers & 1 << id != 0), more_than_half);
        }
    }
}

/// E15, L3: every set of answers of every pair of halves of up to three voters among five replicas.
#[test]
fn a_joint_quorum_is_more_than_half_of_both_halves() {
    let halves = (1..1_u32 << 5).filter(|half| half.count_ones() <= 3);
    for (voters, outgoing) in halves.clone().flat_map(|a| halves.clone().map(move |b| (a, b))) {
        let ids = |half: u32| (0..5).filter(|id| half & 1 << id != 0).collect();
        let (voters_set, outgoing_set) = (ids(voters), ids(outgoing));
        let membership =
            Membership { voters: voters_set, outgoing: outgoing_set, learners: BTreeSet::new() };
        for answers in 0..1_u32 << 5 {
            let more_than = |half: u32| 2 * (half & answers).count_ones() > half.count_ones();
            let both = more_than(voters) && more_than(outgoing);
            assert_eq!(membership.quorum(|id| answers & 1 << id != 0), both, "{membership:?}");
        }
    }
}

/// A replica that waits to be added knows no voters, and nothing is ever decided by nobody.
#[test]
fn no_voters_reach_nothing() {
    assert!(!Membership::default().quorum(|_| true));
    assert_eq!(Membership::default().quorum(|_| 7_usize), 0);
}

// The log as a plain vector.

#[derive(Clone, Debug, PartialEq)]
struct Number(u32);

impl StateMachineTransition for Number {
    type TransitionID = u32;

    fn get_id(&self) -> u32 {
        self.0
    }
}

/// One entry of the plain log. A configuration is told apart by its one learner.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Number(u32),
    Configuration(ReplicaID),
}

type Entries = Vec<(Term, Value)>;

fn configuration(learner: Option<ReplicaID>) -> Membership {
    let learners = learner.into_iter().collect();
    Membership { voters: BTreeSet::from([1, 2, 3]), learners, ..Membership::default() }
}

/// The configuration in force after these entries is the last among them (§6).
fn configuration_after(entries: &[(Term, Value)]) -> Membership {
    configuration(entries.iter().rev().find_map(|(_, value)| match value {
        Value::Configuration(learner) => Some(*learner),
        Value::Number(_) => None,
    }))
}

fn numbers(entries: &[(Term, Value)]) -> Vec<u32> {
    let number = |(_, value): &(Term, Value)| match value {
        Value::Number(number) => Some(*number),
        Value::Configuration(_) => None,
    };
    entries.iter().filter_map(number).collect()
}

/// The entries from index `first` on as runs of at most `longest`.
fn runs(first: Index, entries: &[(Term, Value)], longest: usize) -> Vec<Run<Number>> {
    let mut runs: Vec<Run<Number>> = Vec::new();
    for (index, (term, value)) in (first..).zip(entries.iter().copied()) {
        let room = |run: &&mut Run<Number>| {
            let len = run.transitions.len();
            run.term == term && run.membership.is_none() && len < longest
        };
        match (value, runs.last_mut().filter(room)) {
            (Value::Number(number), Some(run)) => {
                Arc::make_mut(&mut run.transitions).push(Number(number));
            }
            (value, _) => {
                let (transitions, membership) = match value {
                    Value::Number(number) => (vec![Number(number)], None),
                    Value::Configuration(id) => (vec![], Some(configuration(Some(id)).into())),
                };
                let transitions = Arc::new(transitions);
                runs.push(Run { first: index, term, transitions, membership });
            }
        }
    }
    runs
}

/// The runs as plain entries, after checking that they follow one another from index `first` on.
fn entries(first: Index, runs: &[Run<Number>]) -> Entries {
    let mut entries = Entries::new();
    for run in runs {
        assert_eq!(run.first, first + entries.len(), "a gap or an overlap in {runs:?}");
        let numbers = run.transitions.iter().map(|number| Value::Number(number.0));
        let learner = run.membership.iter().flat_map(|it| &it.learners);
        let values = numbers.chain(learner.map(|id| Value::Configuration(*id)));
        entries.extend(values.map(|value| (run.term, value)));
    }
    entries
}

/// A position in a plain log, where index 0 comes before every entry.
fn id_at(entries: &[(Term, Value)], index: Index) -> LogId {
    LogId { term: index.checked_sub(1).map_or(0, |place| entries[place].0), index }
}

proptest! {
    #[test]
    fn a_slice_of_a_run_is_the_slice_of_its_entries(
        first in 1_usize..50,
        count in 1_usize..20,
        from in 0_usize..80,
        to in 0_usize..80,
    ) {
        let numbers: Vec<u32> = (0..count as u32).collect();
        let transitions: Arc<Vec<Number>> = Arc::new(numbers.into_iter().map(Number).collect());
        let run = Run { first, term: 3, transitions, membership: None };
        prop_assert_eq!(run.last(), LogId { term: 3, index: first + count - 1 });

        let (begin, end) = (from.max(first), to.min(first + count - 1));
        prop_assume!(begin <= end);
        let part = run.slice(from, to);
        prop_assert_eq!((part.first, part.term), (begin, 3));
        prop_assert_eq!(&part.transitions[..], &run.transitions[begin - first..=end - first]);
        let is_whole = (begin, end) == (first, first + count - 1);
        prop_assert_eq!(Arc::ptr_eq(&part.transitions, &run.transitions), is_whole);
    }
}

/// One of the changes that a replica may save: it cuts off, forgets, appends, and goes up in term.
#[derive(Clone, Debug)]
struct Save {
    truncate: Option<Choice>,
    compact: Option<Choice>,
    install: Option<usize>,
    appended: Vec<(Term, Value)>,
    longest: usize,
    vote: Option<ReplicaID>,
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => any::<u32>().prop_map(Value::Number),
        1 => (4_usize..9).prop_map(Value::Configuration),
    ]
}

fn save() -> impl Strategy<Value = Save> {
    let appended = prop::collection::vec((0_usize..2, value()), 0..8);
    let choice = || prop::option::weighted(0.3, any::<Choice>());
    let vote = prop::option::of(1_usize..4);
    (choice(), choice(), prop::option::weighted(0.1, 1_usize..5), appended, 1_usize..5, vote)
        .prop_map(|(truncate, compact, install, appended, longest, vote)| Save {
            truncate,
            compact,
            install,
            appended,
            longest,
            vote,
        })
}

/// What is saved, with every entry ever appended and not cut off again.
#[derive(Default)]
struct Saved {
    term: Term,
    log: Entries,
    compacted: LogId,
    snapshot: Option<Snapshot<u32>>,
    membership: Option<Membership>,
}

impl Saved {
    /// Does to the vector what a change is said to do, and returns that change.
    fn save(&mut self, save: &Save) -> Change<Number, u32> {
        let first = self.compacted.index + 1;
        let mut change = Change { voted_for: save.vote, ..Change::default() };
        if let Some(choice) = save.truncate.filter(|_| self.log.len() >= first) {
            let from = first + choice.index(self.log.len() + 1 - first);
            self.log.truncate(from - 1);
            change.truncate_from = Some(from);
        }
        if let Some(choice) = save.compact {
            let index = first - 1 + choice.index(self.log.len() + 2 - first);
            self.compacted = id_at(&self.log, index);
        }
        if let Some(beyond) = save.install {
            // A snapshot replaces all that is left of the log, and lies beyond what was compacted.
            self.term += 1;
            self.log.truncate(self.compacted.index);
            let index = self.compacted.index + beyond;
            self.log.resize(index, (self.term, Value::Number(0)));
            change.truncate_from = Some(first);
            self.compacted = id_at(&self.log, index);
            let (last_included_index, last_included_term) = (index, self.term);
            let data = index as u32;
            self.snapshot = Some(Snapshot { last_included_index, last_included_term, data });
            self.membership = Some(configuration(Some(index)));
            (change.snapshot, change.membership) = (self.snapshot.clone(), self.membership.clone());
        }
        let first = self.log.len() + 1;
        for (newer, value) in &save.appended {
            self.term += newer;
            self.log.push((self.term, *value));
        }
        change.runs = runs(first, &self.log[first - 1..], save.longest);
        (change.term, change.compacted) = (self.term, self.compacted);
        change
    }

    fn check(&self, whole: &Change<Number, u32>, vote: Option<ReplicaID>) {
        assert_eq!((whole.term, whole.voted_for), (self.term, vote));
        assert_eq!(whole.compacted, self.compacted);
        let kept = &self.log[self.compacted.index..];
        assert_eq!(entries(self.compacted.index + 1, &whole.runs), kept);
        assert_eq!((&whole.snapshot, &whole.membership), (&self.snapshot, &self.membership));
    }
}

proptest! {
    #[test]
    fn changes_one_after_another_are_one_change(saves in prop::collection::vec(save(), 1..20)) {
        let (mut plain, mut storage) = (Saved::default(), MemoryStorage::default());
        let mut whole = Change::default();
        for save in &saves {
            let change = plain.save(save);
            append(&mut whole, change.clone());
            plain.check(&whole, save.vote);
            storage.save(change).expect("memory does not fail");
            plain.check(&storage.clone().load().expect("memory does not fail"), save.vote);
        }
    }
}

// A follower against the follower of the Raft paper.

const FOLLOWER: ReplicaID = 3;

/// What happens in a history: to its leaders, and to the one follower whose answers are judged.
#[derive(Clone, Debug)]
enum Event {
    /// A new leader, whose log is a part of that of an earlier one, with all that is committed.
    Elect { voter: Choice, kept: Choice },
    /// Any leader, of now or of the past, appends.
    Append { leader: Choice, values: Vec<Value> },
    /// The latest leader has replicated up to an entry of its own.
    Commit { entry: Choice },
    /// A leader sends some entries after any of its own, and some index that is committed.
    Send { leader: Choice, prev: Choice, count: usize, longest: usize, commit: Choice },
    /// A leader sends a snapshot of something committed.
    SendSnapshot { leader: Choice, end: Choice },
    /// Anything sent arrives, for the first time or not.
    Deliver { message: Choice },
    /// The follower stops and begins again with what is saved.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let choice = any::<Choice>;
    let values = prop::collection::vec(value(), 1..6);
    let send = (choice(), choice(), 0_usize..12, 1_usize..12, choice());
    prop_oneof![
        2 => (choice(), choice()).prop_map(|(voter, kept)| Event::Elect { voter, kept }),
        4 => (choice(), values).prop_map(|(leader, values)| Event::Append { leader, values }),
        3 => choice().prop_map(|entry| Event::Commit { entry }),
        9 => send.prop_map(|(leader, prev, count, longest, commit)| {
            Event::Send { leader, prev, count, longest, commit }
        }),
        3 => (choice(), choice()).prop_map(|(leader, end)| Event::SendSnapshot { leader, end }),
        12 => choice().prop_map(|message| Event::Deliver { message }),
        1 => Just(Event::Restart),
    ]
}

/// The leaders of a history, the n-th in term n, and what they have sent.
struct History {
    leaders: Vec<(Entries, Index)>,
    committed: Entries,
    sent: Vec<Message<Number, Vec<u32>>>,
}

impl History {
    fn new() -> History {
        let first_leader = (Entries::new(), 0);
        History { leaders: vec![first_leader], committed: Entries::new(), sent: Vec::new() }
    }

    fn elect(&mut self, voter: Choice, kept: Choice) {
        let is_up_to_date = |log: &&Entries| log.starts_with(&self.committed);
        let logs: Vec<&Entries> =
            self.leaders.iter().map(|(log, _)| log).filter(is_up_to_date).collect();
        let (mut log, least) = ((*voter.get(&logs)).clone(), self.committed.len());
        log.truncate(least + kept.index(log.len() - least + 1));
        self.leaders.push((log, least));
    }

    fn append(&mut self, leader: Choice, values: &[Value]) {
        let place = leader.index(self.leaders.len());
        self.leaders[place].0.extend(values.iter().map(|value| (place + 1, *value)));
    }

    /// Only an entry of the leader's own term is committed by being replicated (§5.4.2).
    fn commit(&mut self, entry: Choice) {
        let term = self.leaders.len();
        let (log, commit) = self.leaders.last_mut().expect("there is a leader");
        let own = log.iter().filter(|(of, _)| *of == term).count();
        if own > 0 {
            let index = log.len() - entry.index(own);
            *commit = index.max(*commit);
            self.committed = log[..*commit].to_vec();
        }
    }

    fn send(&mut self, place: usize, body: Body<Number, Vec<u32>>) {
        // Two replicas take turns at leading.
        self.sent.push(Message { from_id: 1 + place % 2, term: place + 1, body });
    }

    /// The n-th message goes out in the n-th round, so that answers tell what they answer.
    fn round(&self) -> Duration {
        Duration::from_nanos(self.sent.len() as u64)
    }

    fn send_entries(
        &mut self, (leader, prev, commit): (Choice, Choice, Choice), count: usize, longest: usize,
    ) {
        let place = leader.index(self.leaders.len());
        let (log, known) = &self.leaders[place];
        let prev = id_at(log, prev.index(log.len() + 1));
        let sent = &log[prev.index..log.len().min(prev.index + count)];
        let runs = runs(prev.index + 1, sent, longest);
        let (commit, round) = (commit.index(known + 1), self.round());
        self.send(place, Body::AppendEntries { prev, runs, commit, round });
    }

    fn send_snapshot(&mut self, leader: Choice, end: Choice) {
        let place = leader.index(self.leaders.len());
        let (log, known) = &self.leaders[place];
        if *known > 0 {
            let covered = &log[..=end.index(*known)];
            let LogId { term, index } = id_at(log, covered.len());
            let (last_included_index, last_included_term) = (index, term);
            let data = numbers(covered);
            let snapshot = Snapshot { last_included_index, last_included_term, data };
            let (membership, round) = (configuration_after(covered), self.round());
            self.send(
                place,
                Body::InstallSnapshot { snapshot, membership: membership.into(), round },
            );
        }
    }
}

/// The follower of the Raft paper, figures 2 and 13. It keeps every entry it has, even those that a
/// snapshot covers.
#[derive(Default)]
struct Paper {
    term: Term,
    log: Entries,
    commit: Index,
}

impl Paper {
    fn holds(&self, id: LogId) -> bool {
        id.index <= self.log.len() && id_at(&self.log, id.index) == id
    }

    fn receive(&mut self, message: &Message<Number, Vec<u32>>, history: &History) -> Answer {
        let Message { term, body, .. } = message;
        if *term < self.term {
            return Answer::NewerTerm(self.term);
        }
        self.term = *term;
        match body {
            Body::AppendEntries { prev, runs, commit, round } => {
                let result = self.append_entries(*prev, runs, *commit);
                Answer::Appended(self.term, result, *round)
            }
            Body::InstallSnapshot { snapshot, round, .. } => {
                let end = snapshot.last();
                if self.holds(end) {
                    self.commit = self.commit.max(end.index);
                } else if end.index > self.commit {
                    self.log = history.leaders[*term - 1].0[..end.index].to_vec();
                    self.commit = end.index;
                }
                Answer::Appended(self.term, Ok(self.commit), *round)
            }
            _ => panic!("leaders send no other"),
        }
    }

    fn append_entries(
        &mut self, prev: LogId, runs: &[Run<Number>], commit: Index,
    ) -> Result<Index, LogId> {
        if !self.holds(prev) {
            // Of what it has, the latest that the leader may have too.
            let may_match = |id: &LogId| id.index <= prev.index && id.term <= prev.term;
            let ids = (0..=self.log.len()).map(|index| id_at(&self.log, index));
            return Err(ids.rev().find(may_match).expect("there is index 0"));
        }
        let new = entries(prev.index + 1, runs);
        for (place, entry) in (prev.index..).zip(&new) {
            if self.log.get(place).is_some_and(|held| held.0 != entry.0) {
                self.log.truncate(place);
            }
            if place == self.log.len() {
                self.log.push(*entry);
            }
        }
        let matched = prev.index + new.len();
        self.commit = self.commit.max(commit.min(matched));
        Ok(matched)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// The message is of a leadership that is over; this is the term now.
    NewerTerm(Term),
    Appended(Term, Result<Index, LogId>, Duration),
}

type Sent = Vec<(ReplicaID, Message<Number, Vec<u32>>)>;

/// The follower under test with its storage and its state machine, driven as the loop drives it.
struct Follower {
    raft: Raft<Number, Vec<u32>>,
    storage: MemoryStorage<Number, Vec<u32>>,
    config: Config,
    applied: Vec<u32>,
    /// Entries that are applied at a time.
    page: usize,
    /// Whether what it compacts is saved by itself, or only with the next message.
    saves_compaction: bool,
}

impl Follower {
    fn new(snapshot_delta: usize, page: usize, saves_compaction: bool) -> Follower {
        let config = Config {
            id: FOLLOWER,
            peer_ids: vec![1, 2],
            heartbeat_timeout: Duration::from_millis(50),
            election_timeout_range: (Duration::from_millis(500), Duration::from_millis(1000)),
            snapshot_delta,
            max_clock_drift: None,
            joining: false,
            seed: 1,
        };
        let mut storage = MemoryStorage::default();
        let saved = storage.load().expect("memory does not fail");
        let raft = Raft::new(config.clone(), Number(0), saved, Duration::ZERO);
        let raft = raft.expect("an empty log is possible");
        Follower { raft, storage, config, applied: Vec::new(), page, saves_compaction }
    }

    fn restart(&mut self) {
        let saved = self.storage.load().expect("memory does not fail");
        self.applied = saved.snapshot.as_ref().map_or(Vec::new(), |it| it.data.clone());
        let raft = Raft::new(self.config.clone(), Number(0), saved, Duration::ZERO);
        self.raft = raft.expect("what was saved is possible");
    }

    /// A peer gives it the vote, or the pre-vote, for which it stands.
    fn grant_what_it_asks(&mut self, now: Duration) {
        let Status { role, term, .. } = self.raft.me.clone();
        let pre = role == Role::PreCandidate;
        let body = Body::Vote { pre, granted: true };
        self.raft.step(now, Message { from_id: 1, term, body });
    }

    /// A turn; perhaps another without input, which saves what the first has compacted.
    fn turn(&mut self, message: Message<Number, Vec<u32>>) -> (Vec<Answer>, Option<Index>) {
        self.raft.step(Duration::ZERO, message);
        let (answers, cut) = self.take_outputs();
        if self.saves_compaction {
            assert_eq!(self.take_outputs(), (vec![], None));
            let rest = self.raft.outputs(Duration::ZERO);
            assert_eq!(rest.change, None, "nothing is saved when nothing changed");
        }
        (answers, cut)
    }

    fn take_outputs(&mut self) -> (Vec<Answer>, Option<Index>) {
        let (appends, messages, cut) = self.do_outputs(Duration::ZERO);
        assert_eq!(appends, [], "a follower sends no appends");
        let answer = |(_, message): (ReplicaID, Message<Number, Vec<u32>>)| match message {
            Message { term, body: Body::Appended { result, round }, .. } => {
                Answer::Appended(term, result, round)
            }
            Message { term, body: Body::Vote { pre: false, granted: false }, .. } => {
                Answer::NewerTerm(term)
            }
            other => panic!("a follower answered {other:?}"),
        };
        (messages.into_iter().map(answer).collect(), cut)
    }

    /// Saves, applies and compacts. Returns what is to be sent, and where the saved log was cut off.
    fn do_outputs(&mut self, now: Duration) -> (Sent, Sent, Option<Index>) {
        let outputs = self.raft.outputs(now);
        let cut = outputs.change.as_ref().and_then(|change| change.truncate_from);
        if let Some(change) = outputs.change {
            self.storage.save(change).expect("memory does not fail");
            self.raft.saved();
        }
        if let Some(snapshot) = outputs.restore {
            self.applied = snapshot.data;
        }
        while let Some(page) = self.raft.committed().chunks(self.page).next() {
            self.applied.extend(page.iter().map(|number| number.0));
            self.raft.applied(page.len());
            let data = self.applied.clone();
            let compacted = self.raft.compact(|last_included_index, last_included_term| Snapshot {
                last_included_index,
                last_included_term,
                data,
            });
            compacted.expect("it is the one that was asked for");
        }
        (outputs.appends, outputs.messages, cut)
    }

    /// The log, what is saved of it, the configuration and the applied state are the paper's.
    fn check(&mut self, paper: &Paper) {
        let status = self.raft.me.clone();
        assert_eq!((status.term, status.commit), (paper.term, paper.commit));
        assert_eq!((status.applied, status.last_index), (paper.commit, paper.log.len()));
        assert_eq!(*status.membership, configuration_after(&paper.log));
        assert_eq!(self.applied, numbers(&paper.log[..paper.commit]));
        let saved = self.storage.load().expect("memory does not fail");
        assert_eq!(saved.term, paper.term);
        assert!(saved.compacted.index < status.first_index, "{saved:?}, {status:?}");
        if self.saves_compaction {
            assert_eq!(saved.compacted.index + 1, status.first_index);
        }
        assert_eq!(saved.compacted, id_at(&paper.log, saved.compacted.index));
        let kept = &paper.log[saved.compacted.index..];
        assert_eq!(entries(saved.compacted.index + 1, &saved.runs), kept);
    }
}

/// Tries a property on random inputs, on more than usual, because these are long stories.
fn hold<S: Strategy>(inputs: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut config = ProptestConfig::default();
    config.cases = config.cases.max(512);
    if let Err(failure) = TestRunner::new(config).run(inputs, property) {
        panic!("{failure}");
    }
}

/// How often the histories led to what they are there for.
#[derive(Debug, Default)]
struct Seen {
    stale: Cell<usize>,
    mismatched: Cell<usize>,
    cut_off: Cell<usize>,
    compacted: Cell<usize>,
    installed: Cell<usize>,
    restarted: Cell<usize>,
}

fn count(cell: &Cell<usize>, happened: bool) {
    cell.set(cell.get() + usize::from(happened));
}

fn deliver(follower: &mut Follower, paper: &mut Paper, history: &History, at: usize, seen: &Seen) {
    let message = &history.sent[at];
    let (log, first) = (paper.log.clone(), follower.raft.me.first_index);
    let expected = paper.receive(message, history);
    let (answers, cut) = follower.turn(message.clone());
    assert_eq!(answers, std::slice::from_ref(&expected), "to {message:?}");
    follower.check(paper);

    let kept = log.iter().zip(&paper.log).take_while(|(was, is)| was == is).count();
    let installs = matches!(message, Message { body: Body::InstallSnapshot { .. }, .. });
    let installed = installs && log != paper.log;
    if !installed {
        assert_eq!(cut, Some(kept + 1).filter(|_| kept < log.len()), "cut off only what conflicts");
    }
    count(&seen.stale, matches!(expected, Answer::NewerTerm(_)));
    count(&seen.mismatched, matches!(expected, Answer::Appended(_, Err(_), _)));
    count(&seen.cut_off, cut.is_some());
    count(&seen.installed, installed);
    count(&seen.compacted, !installed && follower.raft.me.first_index > first);
}

/// R1, R3, R4, R11, C4, X1, S3, S4, M7: whatever a history of leaders sends, late, twice, out of
/// order, after restarts and compaction: the follower answers, keeps, saves, commits and applies
/// what the follower of the paper does.
#[test]
fn a_follower_is_the_follower_of_the_paper() {
    let seen = Seen::default();
    let follower = (0_usize..4, 1_usize..5, any::<bool>());
    let histories = (follower, prop::collection::vec(event(), 1..150));
    let property = |((delta, page, saves_compaction), events): (_, Vec<Event>)| {
        let mut follower = Follower::new(delta, page, saves_compaction);
        let (mut history, mut paper) = (History::new(), Paper::default());
        for event in events {
            match event {
                Event::Elect { voter, kept } => history.elect(voter, kept),
                Event::Append { leader, values } => history.append(leader, &values),
                Event::Commit { entry } => history.commit(entry),
                Event::Send { leader, prev, count, longest, commit } => {
                    history.send_entries((leader, prev, commit), count, longest);
                }
                Event::SendSnapshot { leader, end } => history.send_snapshot(leader, end),
                Event::Deliver { message } if !history.sent.is_empty() => {
                    let at = message.index(history.sent.len());
                    deliver(&mut follower, &mut paper, &history, at, &seen);
                }
                Event::Deliver { .. } => {}
                Event::Restart => {
                    follower.restart();
                    paper.commit = follower.raft.me.commit;
                    follower.check(&paper);
                    count(&seen.restarted, paper.commit > 0);
                }
            }
        }
        Ok(())
    };
    hold(&histories, property);
    let Seen { stale, mismatched, cut_off, compacted, installed, restarted } = &seen;
    let often = [stale, mismatched, cut_off, compacted, installed, restarted];
    assert!(often.iter().all(|it| it.get() > 10), "the histories were too tame: {seen:?}");
}

// What a leader has underway.

/// Entries that one message holds at most, and that may be underway to one peer.
const BATCH: usize = 1024;
const IN_FLIGHT: usize = 64 * BATCH;

/// What a leader sends to a peer in one turn, entries only: the first of each message, how many, and
/// the round.
fn appends_to(raft: &mut Raft<Number, Vec<u32>>, peer: ReplicaID) -> Vec<(Index, usize, Duration)> {
    let outputs = raft.outputs(Duration::ZERO);
    if outputs.change.is_some() {
        raft.saved();
    }
    let sent = outputs.appends.iter().chain(&outputs.messages).filter(|(to, _)| *to == peer);
    let entries = sent.filter_map(|(_, message)| match message {
        Message { body: Body::AppendEntries { prev, runs, round, .. }, .. } => {
            let last = runs.last().map_or(prev.index, |run| run.last().index);
            Some((prev.index + 1, last - prev.index, *round))
        }
        _ => None,
    });
    entries.filter(|(_, count, _)| *count > 0).collect()
}

/// A leader of term 1 and of three voters, at the end of the turn in which it was elected.
fn leader() -> Raft<Number, Vec<u32>> {
    let mut raft = Follower::new(0, 1, false).raft;
    elect(&mut raft);
    raft
}

fn elect(raft: &mut Raft<Number, Vec<u32>>) {
    let vote = |raft: &mut Raft<Number, Vec<u32>>, pre, term| {
        let body = Body::Vote { pre, granted: true };
        raft.step(raft.me.deadline, Message { from_id: 1, term, body });
    };
    raft.outputs(raft.me.deadline);
    raft.saved();
    vote(raft, true, 0);
    vote(raft, false, 1);
    assert_eq!(raft.me.leader, Some(FOLLOWER));
    let sent = appends_to(raft, 1);
    assert!(matches!(sent[..], [(1, 1, _)]), "{sent:?}");
}

fn answer(raft: &mut Raft<Number, Vec<u32>>, result: Result<Index, LogId>, round: Duration) {
    let body = Body::Appended { result, round };
    raft.step(Duration::ZERO, Message { from_id: 1, term: 1, body });
}

fn apply_all(raft: &mut Raft<Number, Vec<u32>>) {
    while !raft.committed().is_empty() {
        raft.applied(raft.committed().len());
    }
}

fn compact(
    raft: &mut Raft<Number, Vec<u32>>, last_included_index: Index, last_included_term: Term,
) {
    let due = |index, term| {
        assert_eq!((index, term), (last_included_index, last_included_term));
        Snapshot { last_included_index, last_included_term, data: vec![] }
    };
    raft.compact(due).expect("it is the one that was asked for");
}

/// A follower that is told of commits faster than it applies holds only so much that it has not
/// applied: it acknowledges no more until it has.
#[test]
fn what_a_follower_holds_unapplied_is_bounded() {
    const BATCH: Index = 1024;
    const MOST: Index = 1024 * BATCH;
    let mut raft = Follower::new(0, 1, false).raft;
    let transitions = Arc::new(vec![Number(1); BATCH]);
    let acknowledges = |raft: &mut Raft<Number, Vec<u32>>, last: Index, count: Index| {
        let (index, term) = (last - count, usize::from(last > count));
        let run =
            Run { first: index + 1, term: 1, transitions: transitions.clone(), membership: None };
        let (prev, runs) = (LogId { term, index }, vec![run; usize::from(count > 0)]);
        let body = Body::AppendEntries { prev, runs, commit: last, round: Duration::ZERO };
        raft.step(Duration::ZERO, Message { from_id: 1, term: 1, body });
        let outputs = raft.outputs(Duration::ZERO);
        raft.saved();
        outputs.messages.into_iter().find_map(|(_, message)| match message {
            Message { body: Body::Appended { result, .. }, .. } => Some(result),
            _ => None,
        })
    };
    for last in (BATCH..=MOST + 2 * BATCH).step_by(BATCH) {
        assert_eq!(acknowledges(&mut raft, last, BATCH), Some(Ok(last.min(MOST))));
    }
    apply_all(&mut raft);
    assert_eq!(acknowledges(&mut raft, MOST + 2 * BATCH, 0), Some(Ok(MOST + 2 * BATCH)));
}

/// F3: a message is bounded, and so is what is underway to a peer that does not answer. The window
/// is how far the next entry lies ahead of what is matched: it opens by as much as is answered, and
/// a loss that is found out leaves nothing underway, whatever was sent before.
#[test]
fn what_is_underway_to_a_peer_is_bounded() {
    let mut raft = leader();
    raft.propose((0..3 * IN_FLIGHT as u32).map(Number).collect());
    let sent = appends_to(&mut raft, 1);
    assert!(sent.iter().all(|(_, count, _)| *count <= BATCH), "{sent:?}");
    let next = raft.me.peers[&1].next;
    assert!((IN_FLIGHT..=IN_FLIGHT + BATCH).contains(&(next - 1)), "{next}");
    assert_eq!(sent.iter().map(|(_, count, _)| count).sum::<usize>(), next - 2);
    assert_eq!(appends_to(&mut raft, 1), [], "no more before an answer");

    let (.., round) = sent[0];
    for answered in [1, 1 + BATCH, 1 + 5 * BATCH] {
        answer(&mut raft, Ok(answered), round);
        let more: usize = appends_to(&mut raft, 1).iter().map(|(_, count, _)| count).sum();
        let progress = raft.me.peers[&1].clone();
        assert_eq!((progress.matched, answered > 1), (answered, more > 0));
        assert!(progress.next - progress.matched <= IN_FLIGHT + BATCH, "{progress:?}");
    }

    let lost = LogId { term: 1, index: 1 + 5 * BATCH };
    answer(&mut raft, Err(lost), round);
    assert_eq!(appends_to(&mut raft, 1), [], "a probe has no entries");
    assert_eq!(raft.me.peers[&1].next, lost.index + 1);
}

/// F3: entries that were appended apart share a message if there is room for all of them.
#[test]
fn a_message_holds_whole_runs_up_to_its_bound() {
    for (count, messages) in [(BATCH - 1, vec![(1, BATCH)]), (BATCH, vec![(1, 1), (2, BATCH)])] {
        let mut raft = leader();
        let round = raft.me.peers[&1].since;
        answer(&mut raft, Err(LogId::default()), round);
        raft.propose(vec![Number(1); count]);
        assert_eq!(appends_to(&mut raft, 1), [], "it is not known yet where the logs agree");
        let round = raft.me.peers[&1].since;
        answer(&mut raft, Ok(0), round);
        let sent = appends_to(&mut raft, 1);
        assert_eq!(sent.iter().map(|it| (it.0, it.1)).collect::<Vec<_>>(), messages);
    }
}

/// F6: a peer whose next entry is compacted while it is not underway gets none of those that follow:
/// it could not take them.
#[test]
fn what_follows_a_compacted_entry_is_not_sent() {
    let mut raft = Follower::new(1, 1, false).raft;
    elect(&mut raft);
    raft.propose((0..IN_FLIGHT as u32).map(Number).collect());
    let sent = appends_to(&mut raft, 1);
    let (first, count, round) = *sent.last().expect("some are sent");
    let next = first + count;
    raft.propose(vec![Number(1)]);
    raft.propose(vec![Number(2)]);
    assert_eq!(appends_to(&mut raft, 1), [], "as much is underway as may be");

    let last = next + 1;
    let body = Body::Appended { result: Ok(last), round };
    raft.step(Duration::ZERO, Message { from_id: 2, term: 1, body });
    assert_eq!(appends_to(&mut raft, 1), []);
    apply_all(&mut raft);
    compact(&mut raft, last, 1);

    answer(&mut raft, Ok(1 + BATCH), round);
    assert_eq!(appends_to(&mut raft, 1), []);
    assert_eq!(raft.me.first_index, next + 1, "the next entry was the last compacted");
    assert_eq!(raft.me.peers[&1].next, next);
}

/// P16: times of centuries overflow nothing, neither when they are added to the time nor when they are
/// doubled.
#[test]
fn endless_times_overflow_nothing() {
    let second = Duration::from_secs(1);
    let with = |heartbeat_timeout, election_timeout_range| {
        let Follower { config, .. } = Follower::new(1, 1, false);
        let config = Config { heartbeat_timeout, election_timeout_range, ..config };
        Raft::new(config, Number(0), Change::default(), 2 * second)
            .expect("these times are allowed")
    };
    let mut raft = with(Duration::MAX - second, (Duration::MAX - second / 2, Duration::MAX));
    assert!(raft.outputs(Duration::ZERO).status.is_some());
    let status = raft.outputs(Duration::MAX).status.expect("the role is new");
    assert_eq!(status.role, Role::PreCandidate);

    let mut raft = with(second, (2 * second, Duration::MAX));
    let step = |raft: &mut Raft<Number, Vec<u32>>, from_id, term, body| {
        raft.step(Duration::ZERO, Message { from_id, term, body });
    };
    let (prev, runs, commit, round) = (LogId::default(), vec![], 0, Duration::ZERO);
    step(&mut raft, 1, 1, Body::AppendEntries { prev, runs, commit, round });
    step(&mut raft, 1, 1, Body::TimeoutNow);
    step(&mut raft, 1, 2, Body::Vote { pre: false, granted: true });
    raft.propose(vec![Number(1), Number(2)]);
    let (.., round) = *appends_to(&mut raft, 1).last().expect("they are sent");
    step(&mut raft, 2, 2, Body::Appended { result: Ok(3), round });
    raft.outputs(Duration::ZERO);
    apply_all(&mut raft);
    compact(&mut raft, 3, 2);
    step(&mut raft, 1, 2, Body::Appended { result: Err(LogId::default()), round });
    assert!(raft.me.peers[&1].installing.is_some());
}

/// A leader asks for no more transitions while too many wait to be applied, until one of them is.
/// Who does not lead asks however much it holds: it abandons them at once.
#[test]
fn a_leader_asks_for_no_more_than_it_can_apply() {
    let mut raft = leader();
    raft.propose((0..IN_FLIGHT as u32 - 2).map(Number).collect());
    assert!(raft.wants_transitions());
    raft.propose(vec![Number(1)]);
    assert!(!raft.wants_transitions());

    let (.., round) = appends_to(&mut raft, 1)[0];
    assert_eq!(raft.me.last_index, IN_FLIGHT);
    answer(&mut raft, Ok(IN_FLIGHT), round);
    raft.outputs(Duration::ZERO);
    assert_eq!((raft.me.commit, raft.me.applied), (IN_FLIGHT, 0));
    raft.applied(1);
    assert!(raft.wants_transitions());
    raft.propose(vec![Number(2)]);
    assert!(!raft.wants_transitions());

    let (role, body) = (Role::Follower, Body::Vote { pre: false, granted: false });
    raft.step(Duration::ZERO, Message { from_id: 1, term: 2, body });
    assert_eq!((raft.me.role, raft.me.applied), (role, 1));
    assert!(raft.wants_transitions());
}

// What cannot have been saved.

/// S17, R3: a log with a gap, with one between snapshot and log, or with terms that fall is refused at
/// start: to go on with the rest would leave something out.
#[test]
fn what_no_replica_saves_is_refused() {
    let run = |first, term, count| Run {
        first,
        term,
        transitions: Arc::new((0..count).map(Number).collect()),
        membership: None,
    };
    let snapshot = |index| {
        Some(Snapshot { last_included_index: index, last_included_term: 1, data: Vec::new() })
    };
    let start = |term, compacted, snapshot, runs| {
        let compacted = LogId { term: 1.min(compacted), index: compacted };
        let membership = Some(configuration(None));
        let saved = Change { term, compacted, snapshot, runs, membership, ..Change::default() };
        let config = Follower::new(2, 1, false).config;
        Raft::<Number, Vec<u32>>::new(config, Number(0), saved, Duration::ZERO)
    };
    assert!(start(2, 3, snapshot(3), vec![run(4, 1, 2), run(6, 2, 1)]).is_ok());
    assert!(start(2, 3, snapshot(5), vec![run(4, 1, 2), run(6, 2, 1)]).is_ok());
    assert!(start(usize::MAX / 2 - 1, 3, snapshot(3), vec![]).is_ok());

    let gap_after_the_snapshot = start(2, 3, snapshot(3), vec![run(10, 1, 3)]);
    let gap_in_the_log = start(2, 3, snapshot(3), vec![run(4, 1, 2), run(7, 2, 1)]);
    let falling_terms = start(2, 3, snapshot(3), vec![run(4, 2, 2), run(6, 1, 1)]);
    let compacted_without_a_snapshot = start(2, 3, None, vec![run(4, 1, 2)]);
    let snapshot_beyond_the_log = start(2, 3, snapshot(9), vec![run(4, 1, 2)]);
    let entries_of_a_later_term = start(1, 3, snapshot(3), vec![run(4, 2, 2)]);
    let term_beyond_belief = start(usize::MAX / 2, 3, snapshot(3), vec![]);
    let refused = [
        gap_after_the_snapshot,
        gap_in_the_log,
        falling_terms,
        compacted_without_a_snapshot,
        snapshot_beyond_the_log,
        entries_of_a_later_term,
        term_beyond_belief,
    ];
    for raft in refused {
        let error = raft.expect_err("this cannot have been saved");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    }
}

/// M7: where the snapshot ends, the configuration holds that the log has up to there, not that of the
/// beginning, if the state machine has brought a snapshot of which the storage knows nothing yet.
#[test]
fn the_log_says_which_configuration_a_snapshot_has() {
    let values = [Value::Number(1), Value::Configuration(7), Value::Number(2)];
    let snapshot = Snapshot { last_included_index: 3, last_included_term: 1, data: vec![1, 2] };
    let saved = Change {
        term: 1,
        runs: runs(1, &values.map(|value| (1, value)), 1),
        snapshot: Some(snapshot),
        ..Change::default()
    };
    let config = Follower::new(2, 1, false).config;
    let raft = Raft::<Number, Vec<u32>>::new(config, Number(0), saved, Duration::ZERO);
    let change = raft
        .expect("this can have been saved")
        .outputs(Duration::ZERO)
        .change
        .expect("not saved yet");
    assert_eq!(change.membership, Some(configuration(Some(7))));
}

// Messages that no replica sends.

/// Mostly numbers that may make sense, and the greatest there is.
fn any_number(end: usize) -> impl Strategy<Value = usize> {
    prop_oneof![19 => 0..end, 1 => Just(usize::MAX)]
}

fn any_id() -> impl Strategy<Value = LogId> {
    (any_number(6), any_number(14)).prop_map(|(term, index)| LogId { term, index })
}

fn any_run() -> impl Strategy<Value = Run<Number>> {
    let transitions = prop::collection::vec(any::<u32>().prop_map(Number), 0..5);
    let membership = prop::option::weighted(0.2, any_membership());
    (any_number(14), any_number(6), transitions, membership).prop_map(
        |(first, term, transitions, membership)| {
            let (transitions, membership) = (Arc::new(transitions), membership.map(Arc::new));
            Run { first, term, transitions, membership }
        },
    )
}

fn any_membership() -> impl Strategy<Value = Membership> {
    let ids = || prop::collection::btree_set(1_usize..6, 0..4);
    (ids(), ids(), ids()).prop_map(|(voters, outgoing, learners)| Membership {
        voters,
        outgoing,
        learners,
    })
}

/// Runs that follow one another, from some index and term on, as a liar with a little care sends.
fn any_runs() -> impl Strategy<Value = (LogId, Vec<Run<Number>>)> {
    let entries = prop::collection::vec((0_usize..2, value()), 0..6);
    let prev = (0_usize..6, 0_usize..14).prop_map(|(term, index)| LogId { term, index });
    let careful = (prev, entries, 1_usize..4).prop_map(|(prev, newer, longest)| {
        let mut term = prev.term;
        let entry = |(more, value): (usize, Value)| {
            term += more;
            (term.max(1), value)
        };
        let entries: Entries = newer.into_iter().map(entry).collect();
        (prev, runs(prev.index + 1, &entries, longest))
    });
    prop_oneof![3 => careful, 1 => (any_id(), prop::collection::vec(any_run(), 0..4))]
}

fn any_body() -> impl Strategy<Value = Body<Number, Vec<u32>>> {
    let number = || any_number(16);
    let round = || prop_oneof![0_u64..3, 0_u64..1_500_000_000, Just(u64::MAX)];
    let round = || round().prop_map(Duration::from_nanos);
    let append = (any_runs(), number(), round()).prop_map(|((prev, runs), commit, round)| {
        Body::AppendEntries { prev, runs, commit, round }
    });
    let install = (any_id(), any_membership(), round()).prop_map(|(end, membership, round)| {
        let (last_included_index, last_included_term) = (end.index, end.term);
        let data = vec![end.index as u32];
        let snapshot = Snapshot { last_included_index, last_included_term, data };
        Body::InstallSnapshot { snapshot, membership: membership.into(), round }
    });
    let flag = any::<bool>;
    let votes = (flag(), flag(), any_id()).prop_map(|(pre, transfer, last)| Body::RequestVote {
        pre,
        transfer,
        last,
    });
    let matched = (number(), round()).prop_map(|(it, round)| (Ok(it), round));
    let refused = (any_id(), round()).prop_map(|(it, round)| (Err(it), round));
    let ids = || prop::collection::vec(1_usize..6, 0..4);
    prop_oneof![
        8 => append,
        3 => install,
        3 => prop_oneof![matched, refused]
            .prop_map(|(result, round)| Body::Appended { result, round }),
        2 => votes,
        12 => (flag(), flag()).prop_map(|(pre, granted)| Body::Vote { pre, granted }),
        1 => Just(Body::TimeoutNow),
        1 => any::<u64>().prop_map(|context| Body::ReadIndex { context }),
        1 => (ids(), ids()).prop_map(|(voters, learners)| {
            let [voters, learners] = [voters, learners].map(BTreeSet::from_iter);
            let outgoing = BTreeSet::new();
            Body::ChangeMembership(Membership { voters, outgoing, learners })
        }),
        1 => (1_usize..6).prop_map(Body::TransferLeadership),
    ]
}

/// V8: whatever arrives, from whomever, nothing panics, and what is saved can be started from.
#[test]
fn no_message_breaks_a_replica() {
    let message = (0_usize..6, any_number(6), any_body(), 0_u64..300, 0_u8..8);
    let led = Cell::new(0);
    let inputs = (0_usize..3, prop::collection::vec(message, 1..60));
    let property = |(snapshot_delta, messages): (_, Vec<_>)| {
        let mut follower = Follower::new(snapshot_delta, 2, false);
        let mut now = Duration::ZERO;
        for (from_id, term, body, milliseconds, luck) in messages {
            now += Duration::from_millis(milliseconds);
            follower.raft.step(now, Message { from_id, term, body });
            if luck == 0 {
                follower.grant_what_it_asks(now);
            }
            follower.raft.propose(vec![Number(1)]);
            follower.do_outputs(now);
            count(&led, follower.raft.me.leader == Some(FOLLOWER));
            let saved = follower.storage.load().expect("memory does not fail");
            let again = Raft::new(follower.config.clone(), Number(0), saved, now);
            prop_assert!(again.is_ok(), "{again:?}");
        }
        Ok(())
    };
    hold(&inputs, property);

    assert!(led.get() > 100, "it led {} times only", led.get());
}
