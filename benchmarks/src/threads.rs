//! A thread for each replica, messages over channels, the client in the leader's thread or in one
//! of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::client::{Client, Measurement};
use crate::command::{Command, State};
use crate::node::{Node, REPLICAS};
use crate::scenario::{Place, Setup};

const TICK: Duration = Duration::from_millis(10);
/// A busy replica looks at the clock only once in so many turns.
const TURNS_PER_CLOCK_READING: u32 = 64;
/// How long followers may take, after the last command, to apply what the leader applied.
const SETTLE: Duration = Duration::from_secs(5);

enum Input<N: Node> {
    Message(N::Message),
    Commands(Vec<N::Command>),
}

/// Where a replica's commands come from, and whom it tells what it applied.
enum Load {
    Nobody,
    Here(Box<Client>),
    Elsewhere { progress: Sender<u64>, told: Option<u64> },
}

/// How a run ends: the client names the count that everybody has to reach, everybody who did is
/// counted, and then all stop together, so that no follower misses the last messages.
struct Ending {
    target: AtomicU64,
    arrived: AtomicUsize,
    stop: AtomicBool,
}

struct Worker<N: Node> {
    id: usize,
    node: N,
    state: State,
    inbox: Receiver<Input<N>>,
    peers: Vec<Sender<Input<N>>>,
    outgoing: Vec<(usize, N::Message)>,
    next_tick: Instant,
    turns: u32,
    load: Load,
    ending: Arc<Ending>,
    has_arrived: bool,
}

pub fn measure<N: Node>(setup: &Setup, nodes: [N; REPLICAS]) -> Result<Measurement, String> {
    let ending = Arc::new(Ending::new());
    let (peers, inboxes): (Vec<_>, Vec<_>) = (0..REPLICAS).map(|_| unbounded()).unzip();
    let (progress, applied) = unbounded();
    let client = Client::new(setup);
    let (mut load, client_thread) = match setup.scenario.place {
        Place::OnItsOwn => {
            let (leader, ending) = (peers[0].clone(), ending.clone());
            let serve = move || serve_client::<N>(client, applied, leader, ending);
            (Load::Elsewhere { progress, told: None }, Some(thread::spawn(serve)))
        }
        _ => (Load::Here(Box::new(client)), None),
    };
    let mut workers = Vec::new();
    for (id, (node, inbox)) in nodes.into_iter().zip(inboxes).enumerate() {
        let load = std::mem::replace(&mut load, Load::Nobody);
        let worker = Worker::new(id, node, inbox, peers.clone(), load, ending.clone());
        workers.push(thread::spawn(move || worker.run()));
    }
    ending.wait();
    let mut states = Vec::new();
    let mut client = client_thread.map(|thread| thread.join().expect("the client panicked"));
    for worker in workers {
        let (state, load) = worker.join().expect("a replica panicked");
        states.push(state);
        if let Load::Here(here) = load {
            client = Some(*here);
        }
    }
    client.expect("some thread has the client").measurement(states)
}

/// The client in a thread of its own: hears what was applied, sends what comes next.
fn serve_client<N: Node>(
    mut client: Client,
    applied: Receiver<u64>,
    leader: Sender<Input<N>>,
    ending: Arc<Ending>,
) -> Client {
    // The first message says only that there is a leader.
    while let Ok(first) = applied.recv() {
        let count = applied.try_iter().last().unwrap_or(first);
        let numbers = client.next(count);
        if client.is_finished() {
            ending.announce(client.proposed());
            break;
        }
        if numbers.is_empty() {
            continue;
        }
        let commands = numbers.map(N::Command::numbered).collect();
        if leader.send(Input::Commands(commands)).is_err() {
            break;
        }
    }
    client
}

/// For systems with threads of their own: waits until every state machine, as `read` finds them,
/// has applied so many commands, or nobody may be expected to any more.
pub fn settle(target: u64, read: impl Fn() -> Vec<State>) -> Vec<State> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let states = read();
        if states.iter().all(|state| state.count >= target) || Instant::now() > deadline {
            return states;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

impl Ending {
    fn new() -> Self {
        Self {
            target: AtomicU64::new(u64::MAX),
            arrived: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn announce(&self, target: u64) {
        self.target.store(target, Ordering::Release);
    }

    /// Blocks until everybody arrived, or nobody more may be expected to.
    fn wait(&self) {
        let mut announced_at = None;
        while self.arrived.load(Ordering::Acquire) < REPLICAS {
            if self.target.load(Ordering::Acquire) != u64::MAX {
                let since = *announced_at.get_or_insert_with(Instant::now);
                if since.elapsed() > SETTLE {
                    break;
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.stop.store(true, Ordering::Release);
    }
}

impl<N: Node> Worker<N> {
    fn new(
        id: usize,
        node: N,
        inbox: Receiver<Input<N>>,
        peers: Vec<Sender<Input<N>>>,
        load: Load,
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            id,
            node,
            state: State::default(),
            inbox,
            peers,
            outgoing: Vec::new(),
            next_tick: Instant::now() + TICK,
            turns: 0,
            load,
            ending,
            has_arrived: false,
        }
    }

    fn run(mut self) -> (State, Load) {
        while !self.ending.stop.load(Ordering::Relaxed) {
            self.take_input();
            self.turn();
            self.serve_client();
            self.arrive();
        }
        (self.state, self.load)
    }

    /// Waits for something to come in or the next tick, then takes all there is: answers and
    /// proposals that came meanwhile are worked on together.
    fn take_input(&mut self) {
        match self.inbox.recv_deadline(self.next_tick) {
            Ok(input) => self.take(input),
            Err(RecvTimeoutError::Timeout) => self.tick(),
            Err(RecvTimeoutError::Disconnected) => unreachable!("replica {} has itself", self.id),
        }
        while let Ok(input) = self.inbox.try_recv() {
            self.take(input);
        }
        self.turns += 1;
        if self.turns.is_multiple_of(TURNS_PER_CLOCK_READING) && Instant::now() >= self.next_tick {
            self.tick();
        }
    }

    fn take(&mut self, input: Input<N>) {
        match input {
            Input::Message(message) => self.node.receive(message),
            Input::Commands(commands) => self.node.propose(commands),
        }
    }

    fn tick(&mut self) {
        self.node.tick();
        self.next_tick = Instant::now() + TICK;
    }

    fn turn(&mut self) {
        self.node.turn(&mut self.state, &mut self.outgoing);
        for (to, message) in self.outgoing.drain(..) {
            // A replica that is gone has stopped with all others; nobody misses the message.
            let _ = self.peers[to].send(Input::Message(message));
        }
    }

    fn serve_client(&mut self) {
        if !self.node.leads() {
            return;
        }
        let count = self.state.count;
        match &mut self.load {
            Load::Nobody => {}
            Load::Here(client) => {
                let numbers = client.next(count);
                if client.is_finished() {
                    self.ending.announce(client.proposed());
                } else if !numbers.is_empty() {
                    self.node.propose(numbers.map(N::Command::numbered).collect());
                    self.turn();
                }
            }
            Load::Elsewhere { progress, told } if *told != Some(count) => {
                *told = Some(count);
                let _ = progress.send(count);
            }
            Load::Elsewhere { .. } => {}
        }
    }

    fn arrive(&mut self) {
        if !self.has_arrived && self.state.count >= self.ending.target.load(Ordering::Relaxed) {
            self.has_arrived = true;
            self.ending.arrived.fetch_add(1, Ordering::AcqRel);
        }
    }
}
