//! A state machine and a cluster that write down all that happens to them, a network in memory, and
//! replicas in threads of their own.

pub(crate) use crate::common::{Letter, NOOP, Write};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use little_raft::{
    Body, Cluster, LogId, Message, ReadState, Replica, Role, Run, Snapshot, StateMachine, Status,
    TransitionState,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(25);
/// Election timeouts of replicas that are to elect each other.
pub(crate) const SOON: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_millis(400));
/// Election timeouts of a replica that is not to stand for election during a test.
pub(crate) const NEVER: (Duration, Duration) =
    (Duration::from_secs(3600), Duration::from_secs(7200));
/// No condition takes this long, however busy the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) type Shell = Replica<Book, Write, Wire, Vec<usize>>;
type Probe = Option<Box<dyn Fn(&'static str) + Send>>;

/// What a replica has told its state machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    State(usize, TransitionState),
    Apply(usize),
    /// How a read ended, and how much was written at that moment.
    Read(usize, ReadState, usize),
    Restore(Vec<usize>),
    Create(LogId),
}

/// The state machine: the numbers in the order in which they were written.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) written: Vec<usize>,
    pub(crate) events: Vec<Event>,
    pub(crate) pending: Vec<Write>,
    pub(crate) questions: Vec<usize>,
    /// How many transitions and reads one poll takes; 0 for all.
    pub(crate) batch: usize,
    pub(crate) polls: usize,
    /// What `get_snapshot` returns, and how often it was asked.
    pub(crate) initial: Option<Snapshot<Vec<usize>>>,
    pub(crate) asked_for_snapshot: usize,
    /// Called at the beginning of each call, with its name.
    pub(crate) probe: Probe,
}

impl Book {
    fn probe(&self, name: &'static str) {
        self.probe.iter().for_each(|probe| probe(name));
    }

    /// What was registered for one transition.
    pub(crate) fn states(&self, id: usize) -> Vec<TransitionState> {
        let of_id = |event: &Event| match event {
            Event::State(of, state) if *of == id => Some(state.clone()),
            _ => None,
        };
        self.events.iter().filter_map(of_id).collect()
    }

    /// The answers to one read, each with how much was written at that moment.
    pub(crate) fn answers(&self, id: usize) -> Vec<(ReadState, usize)> {
        let of_id = |event: &Event| match event {
            Event::Read(of, state, written) if *of == id => Some((*state, *written)),
            _ => None,
        };
        self.events.iter().filter_map(of_id).collect()
    }

    fn take<A>(batch: usize, from: &mut Vec<A>) -> Vec<A> {
        let count = if batch == 0 { from.len() } else { batch.min(from.len()) };
        from.drain(..count).collect()
    }
}

impl StateMachine<Write, Vec<usize>> for Book {
    fn register_transition_state(&mut self, id: usize, state: TransitionState) {
        self.probe("register_transition_state");
        self.events.push(Event::State(id, state));
    }

    fn apply_transition(&mut self, Write(id): Write) {
        self.probe("apply_transition");
        self.written.push(id);
        self.events.push(Event::Apply(id));
    }

    fn get_pending_transitions(&mut self) -> Vec<Write> {
        self.probe("get_pending_transitions");
        self.polls += 1;
        Book::take(self.batch, &mut self.pending)
    }

    fn get_snapshot(&mut self) -> Option<Snapshot<Vec<usize>>> {
        self.probe("get_snapshot");
        self.asked_for_snapshot += 1;
        self.written = self.initial.as_ref().map_or(Vec::new(), |it| it.data.clone());
        self.initial.clone()
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Vec<usize>> {
        self.probe("create_snapshot");
        self.events.push(Event::Create(LogId { term, index }));
        let data = self.written.clone();
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Vec<usize>>) {
        self.probe("set_snapshot");
        self.written = snapshot.data.clone();
        self.events.push(Event::Restore(snapshot.data));
    }

    fn get_pending_reads(&mut self) -> Vec<usize> {
        self.probe("get_pending_reads");
        Book::take(self.batch, &mut self.questions)
    }

    fn register_read_state(&mut self, id: usize, state: ReadState) {
        self.probe("register_read_state");
        self.events.push(Event::Read(id, state, self.written.len()));
    }
}

/// The cluster: a place in the network.
pub(crate) struct Wire {
    pub(crate) id: usize,
    pub(crate) net: Arc<Net>,
    pub(crate) leaders: Vec<Option<usize>>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) receives: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) probe: Probe,
}

/// What a test may look at and change without the cluster's mutex.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) halt: AtomicBool,
    pub(crate) turns: AtomicUsize,
}

impl Wire {
    pub(crate) fn new(id: usize, net: &Arc<Net>) -> Wire {
        let (leaders, statuses, shared) = (Vec::new(), Vec::new(), Arc::default());
        Wire { id, net: net.clone(), leaders, statuses, receives: 0, shared, probe: None }
    }

    fn probe(&self, name: &'static str) {
        self.probe.iter().for_each(|probe| probe(name));
    }

    pub(crate) fn status(&self) -> Option<&Status> {
        self.statuses.last()
    }
}

impl Cluster<Write, Vec<usize>> for Wire {
    fn send_message(&mut self, to_id: usize, letter: Letter) {
        self.probe("send_message");
        self.net.send(self.id, to_id, letter);
    }

    fn receive_messages(&mut self) -> Vec<Letter> {
        self.probe("receive_messages");
        self.receives += 1;
        self.net.collect(self.id)
    }

    fn halt(&self) -> bool {
        self.probe("halt");
        self.shared.turns.fetch_add(1, SeqCst);
        self.shared.halt.load(SeqCst)
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        self.probe("register_leader");
        self.leaders.push(leader_id);
    }

    fn register_status(&mut self, status: Status) {
        self.probe("register_status");
        self.statuses.push(status);
    }
}

/// A network in memory, calm unless a test makes it rough.
pub(crate) struct Net {
    boxes: BTreeMap<usize, Mailbox>,
    weather: Mutex<Weather>,
}

struct Mailbox {
    letters: Mutex<Vec<Letter>>,
    bell: Sender<()>,
    heard: Receiver<()>,
}

/// What may happen to a letter: to be cut off, lost, sent twice, held back for a while.
pub(crate) struct Weather {
    /// From whom to whom nothing gets through.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) lost: f64,
    pub(crate) twice: f64,
    pub(crate) held: f64,
    random: StdRng,
    underway: Vec<(usize, Letter)>,
}

impl Net {
    /// A network of replicas 1 to `count`.
    pub(crate) fn new(count: usize) -> Arc<Net> {
        Net::of(1..=count)
    }

    pub(crate) fn of(ids: impl IntoIterator<Item = usize>) -> Arc<Net> {
        let mailbox = |id| {
            let (bell, heard) = bounded(1);
            (id, Mailbox { letters: Mutex::default(), bell, heard })
        };
        let (cut, underway, random) = (BTreeSet::new(), Vec::new(), StdRng::seed_from_u64(1));
        let weather = Weather { cut, lost: 0.0, twice: 0.0, held: 0.0, random, underway };
        Arc::new(Net {
            boxes: ids.into_iter().map(mailbox).collect(),
            weather: Mutex::new(weather),
        })
    }

    pub(crate) fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, from_id: usize, to_id: usize, letter: Letter) {
        let mut weather = self.weather();
        let (lost, twice, held) = (weather.lost, weather.twice, weather.held);
        if weather.cut.contains(&(from_id, to_id)) || weather.random.random_bool(lost) {
            return;
        }
        for _ in 0..1 + usize::from(weather.random.random_bool(twice)) {
            if weather.random.random_bool(held) {
                weather.underway.push((to_id, letter.clone()));
            } else {
                self.deliver(to_id, letter.clone());
            }
        }
    }

    /// Puts a letter into a mailbox, whoever wrote it.
    pub(crate) fn deliver(&self, to_id: usize, letter: Letter) {
        if let Some(Mailbox { letters, bell, .. }) = self.boxes.get(&to_id) {
            letters.lock().unwrap().push(letter);
            let _ = bell.try_send(());
        }
    }

    pub(crate) fn collect(&self, id: usize) -> Vec<Letter> {
        std::mem::take(&mut *self.boxes[&id].letters.lock().unwrap())
    }

    /// What rings when something arrives.
    pub(crate) fn bell(&self, id: usize) -> Receiver<()> {
        self.boxes[&id].heard.clone()
    }

    /// Has what is held back arrive late and in any order, until the network is gone.
    pub(crate) fn run_courier(self: &Arc<Net>) {
        let net = Arc::downgrade(self);
        thread::spawn(move || {
            while let Some(net) = net.upgrade() {
                let mut weather = net.weather();
                let Weather { underway, random, .. } = &mut *weather;
                for _ in 0..underway.len().div_ceil(8) {
                    let place = random.next_u64() as usize % underway.len();
                    let (to_id, letter) = underway.swap_remove(place);
                    net.deliver(to_id, letter);
                }
                drop(weather);
                drop(net);
                thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

/// A replica in a thread of its own.
pub(crate) struct Node {
    pub(crate) id: usize,
    pub(crate) net: Arc<Net>,
    pub(crate) book: Arc<Mutex<Book>>,
    pub(crate) wire: Arc<Mutex<Wire>>,
    pub(crate) shared: Arc<Shared>,
    bell: Sender<()>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Node {
    /// Starts replica `id` among `peers`, with an empty state machine.
    pub(crate) fn start(
        net: &Arc<Net>, id: usize, peers: &[usize], timeouts: (Duration, Duration),
        configure: impl FnOnce(Shell) -> Shell,
    ) -> Node {
        Node::start_with(net, id, peers, timeouts, Book::default(), configure)
    }

    pub(crate) fn start_with(
        net: &Arc<Net>, id: usize, peers: &[usize], timeouts: (Duration, Duration), book: Book,
        configure: impl FnOnce(Shell) -> Shell,
    ) -> Node {
        let wire = Arc::new(Mutex::new(Wire::new(id, net)));
        Node::run(&wire, &Arc::new(Mutex::new(book)), peers, timeouts, configure)
    }

    pub(crate) fn run(
        wire: &Arc<Mutex<Wire>>, book: &Arc<Mutex<Book>>, peers: &[usize],
        timeouts: (Duration, Duration), configure: impl FnOnce(Shell) -> Shell,
    ) -> Node {
        let (id, net, shared) = {
            let wire = wire.lock().unwrap();
            (wire.id, wire.net.clone(), wire.shared.clone())
        };
        let replica = shell(id, peers, wire, book, timeouts);
        let (mut replica, (bell, heard)) = (configure(replica), unbounded());
        let recv_msg = net.bell(id);
        let thread = Some(thread::spawn(move || replica.start(recv_msg, heard)));
        let (wire, book) = (wire.clone(), book.clone());
        Node { id, net, book, wire, shared, bell, thread }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last status that the replica told.
    pub(crate) fn status(&self) -> Option<Status> {
        self.wire().status().cloned()
    }

    pub(crate) fn leads(&self) -> bool {
        self.status().is_some_and(|status| status.role == Role::Leader)
    }

    pub(crate) fn turns(&self) -> usize {
        self.shared.turns.load(SeqCst)
    }

    pub(crate) fn ring(&self) {
        let _ = self.bell.try_send(());
    }

    pub(crate) fn write(&self, id: usize) {
        self.book().pending.push(Write(id));
        self.ring();
    }

    pub(crate) fn ask(&self, id: usize) {
        self.book().questions.push(id);
        self.ring();
    }

    /// A user's request, or a letter, among what `receive_messages` returns.
    pub(crate) fn receive(&self, letter: Letter) {
        self.net.deliver(self.id, letter);
    }

    /// A letter from a peer that the test speaks for.
    pub(crate) fn hear(&self, from_id: usize, term: usize, body: Body<Write, Vec<usize>>) {
        self.receive(Message { from_id, term, body });
    }

    /// Waits until something is so, and fails if the replica ends or it takes too long.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        eventually(what, || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            let so = is_so();
            assert!(so || !ended, "replica {} ended while the test waited for {what}", self.id);
            so
        });
    }

    /// Waits until the replica has looked at everything it was sent before.
    pub(crate) fn settle(&self) {
        let turns = self.turns();
        self.until("two more turns", || self.turns() >= turns + 2);
    }

    /// Waits for the thread, and passes on a panic in it.
    pub(crate) fn join(&mut self) -> std::io::Result<()> {
        let thread = self.thread.take().expect("it is joined once");
        eventually("the end of a replica", || thread.is_finished());
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(crate) fn halt(&mut self) -> std::io::Result<()> {
        self.shared.halt.store(true, SeqCst);
        self.join()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.halt.store(true, SeqCst);
        if let Some(thread) = self.thread.take().filter(|_| !thread::panicking()) {
            thread
                .join()
                .expect("no panic in a replica")
                .expect("no error but where it is expected");
        }
    }
}

/// A replica that is not started yet.
pub(crate) fn shell(
    id: usize, peers: &[usize], wire: &Arc<Mutex<Wire>>, book: &Arc<Mutex<Book>>,
    timeouts: (Duration, Duration),
) -> Shell {
    let (wire, book) = (wire.clone(), book.clone());
    Replica::new(id, peers.to_vec(), wire, book, Write(NOOP), HEARTBEAT, timeouts)
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A peer for which a test speaks. It votes for everybody, and echoes every append.
pub(crate) struct Puppet {
    pub(crate) id: usize,
    pub(crate) net: Arc<Net>,
    /// It never claims to hold more of the log than up to here.
    pub(crate) holds: usize,
    /// Everything that it was sent.
    pub(crate) letters: Vec<Letter>,
}

impl Puppet {
    pub(crate) fn new(id: usize, net: &Arc<Net>) -> Puppet {
        Puppet { id, net: net.clone(), holds: usize::MAX, letters: Vec::new() }
    }

    /// Reads its letters and answers those that have an obvious answer.
    pub(crate) fn play(&mut self) {
        for letter in self.net.collect(self.id) {
            self.letters.push(letter.clone());
            let Message { from_id, term, body } = letter;
            let body = match body {
                Body::RequestVote { pre, .. } => Body::Vote { pre, granted: true },
                Body::AppendEntries { prev, runs, round, .. } => {
                    let last = runs.last().map_or(prev.index, |run| run.last().index);
                    Body::Appended { result: Ok(last.min(self.holds)), round }
                }
                _ => continue,
            };
            self.net.deliver(from_id, Message { from_id: self.id, term, body });
        }
    }

    /// What the puppet was sent, without the envelopes.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Body<Write, Vec<usize>>> {
        self.letters.iter().map(|letter| &letter.body)
    }
}

/// Replica 1 as the leader of term 1, with the puppet 2 and a silent replica 3, and its no-op
/// applied.
pub(crate) fn lead(configure: impl FnOnce(Shell) -> Shell) -> (Node, Puppet) {
    let net = Net::new(3);
    let (node, mut puppet) = (Node::start(&net, 1, &[2, 3], SOON, configure), Puppet::new(2, &net));
    node.until("the no-op is applied", || {
        puppet.play();
        node.book().written == [NOOP]
    });
    (node, puppet)
}

/// A run of writes.
pub(crate) fn run(first: usize, term: usize, ids: &[usize]) -> Run<Write> {
    let transitions = Arc::new(ids.iter().copied().map(Write).collect());
    Run { first, term, transitions, membership: None }
}

/// A leader's append, in round zero.
pub(crate) fn append(
    prev: (usize, usize), runs: Vec<Run<Write>>, commit: usize,
) -> Body<Write, Vec<usize>> {
    let prev = LogId { term: prev.0, index: prev.1 };
    Body::AppendEntries { prev, runs, commit, round: Duration::ZERO }
}

/// Whole replicas, all running.
pub(crate) struct Group {
    pub(crate) net: Arc<Net>,
    pub(crate) nodes: Vec<Node>,
}

impl Group {
    /// Starts replicas 1 to `count`.
    pub(crate) fn start(count: usize, configure: impl Fn(usize, Shell) -> Shell) -> Group {
        Group::start_with_joining(count, 0, configure)
    }

    /// Starts replicas 1 to `count`, and some more of which nobody knows yet.
    pub(crate) fn start_with_joining(
        count: usize, joining: usize, configure: impl Fn(usize, Shell) -> Shell,
    ) -> Group {
        let net = Net::new(count + joining);
        let start = |id| {
            let others = (1..=count).filter(|peer| *peer != id);
            let peers: Vec<_> = if id <= count { others.collect() } else { Vec::new() };
            Node::start(&net, id, &peers, SOON, |replica| {
                let replica = configure(id, replica);
                if id <= count { replica } else { replica.joining() }
            })
        };
        Group { nodes: (1..=count + joining).map(start).collect(), net }
    }

    pub(crate) fn node(&self, id: usize) -> &Node {
        &self.nodes[id - 1]
    }

    /// The replica that leads the latest term, once a majority follows it.
    pub(crate) fn leader(&self) -> &Node {
        let mut found = None;
        eventually("a leader that a majority follows", || {
            let statuses: Vec<_> = self.nodes.iter().filter_map(Node::status).collect();
            let term = statuses.iter().map(|status| status.term).max().unwrap_or_default();
            let follows =
                |id| statuses.iter().filter(|it| it.term == term && it.leader == Some(id)).count();
            found = self.nodes.iter().find(|node| 2 * follows(node.id) > self.nodes.len());
            found.is_some_and(Node::leads)
        });
        found.expect("just found")
    }

    pub(crate) fn follower(&self) -> &Node {
        let leader = self.leader().id;
        self.nodes.iter().find(|node| node.id != leader).expect("there are others")
    }

    /// Writes at the leader, again if it was in vain, until the write is applied there.
    pub(crate) fn write(&self, id: usize) {
        loop {
            let leader = self.leader();
            let before = leader.book().states(id).len();
            leader.write(id);
            let mut last = TransitionState::Queued;
            leader.until("the end of a transition", || {
                last = leader.book().states(id).last().cloned().unwrap_or(TransitionState::Queued);
                let ended = !matches!(last, TransitionState::Queued | TransitionState::Committed);
                leader.book().states(id).len() > before && ended
            });
            if last == TransitionState::Applied {
                return;
            }
        }
    }

    /// Waits until all have written the same, and all of it. Returns it.
    pub(crate) fn agree(&self, on: impl Fn(&[usize]) -> bool) -> Vec<usize> {
        let mut written = Vec::new();
        eventually("agreement", || {
            written = self.nodes[0].book().written.clone();
            on(&written) && self.nodes.iter().all(|node| node.book().written == written)
        });
        written
    }
}

/// What every state machine may expect: `Committed`, the transition, `Applied`, without anything in
/// between; and at most one end for what was queued.
pub(crate) fn check_events(events: &[Event]) {
    use TransitionState::*;
    let mut rest = events.iter();
    while let Some(event) = rest.next() {
        match event {
            Event::State(id, Committed) => {
                assert_eq!(rest.next(), Some(&Event::Apply(*id)), "applied when committed");
                assert_eq!(rest.next(), Some(&Event::State(*id, Applied)), "applied, then said so");
            }
            Event::State(_, Applied) | Event::Apply(_) => {
                panic!("{event:?} without being committed first")
            }
            _ => {}
        }
    }
}
