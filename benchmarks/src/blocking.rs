//! For libraries in the manner of Little Raft: `start` blocks a thread for each replica, and asks
//! a state machine for transitions and a cluster for messages, both behind mutexes, when a channel
//! tells it to. The library's adapter implements its traits for [`Machine`] and [`Network`] and
//! starts the replicas; everything else is here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::client::{Client, Measurement};
use crate::command::{Command, State};
use crate::node::REPLICAS;
use crate::scenario::{Place, Setup};
use crate::threads::settle;

/// The number of the no-op that a leader begins its term with. The state machine ignores it.
const NOOP: u64 = u64::MAX;
/// Between the start of a replica and the next.
const HEAD_START: Duration = Duration::from_millis(30);

/// A command in the form that the libraries ask for: one type for commands and the no-op, with a
/// number to be known by.
#[derive(Clone, Copy, Debug)]
pub struct Transition<C>(pub C);

impl<C: Command> Transition<C> {
    pub fn noop() -> Self {
        Self(C::numbered(NOOP))
    }

    #[inline]
    pub fn number(&self) -> u64 {
        let number = self.0.as_slice()[..8].try_into().expect("a slice of 8 bytes");
        u64::from_le_bytes(number)
    }

    #[inline]
    pub fn is_noop(&self) -> bool {
        self.number() == NOOP
    }
}

/// A wake-up that is never lost and never piles up.
#[derive(Clone)]
struct Bell(Sender<()>);

impl Bell {
    fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = bounded(1);
        (Self(sender), receiver)
    }

    fn ring(&self) {
        // Full means that it rings already.
        let _ = self.0.try_send(());
    }
}

/// What a replica's state machine and a client elsewhere share.
struct Desk<C> {
    pending: Mutex<Vec<Transition<C>>>,
    /// How many commands the leader applied.
    applied: AtomicU64,
}

/// Where the leader's next commands come from.
enum Load<C> {
    Nobody,
    Here { client: Box<Client>, replica: Bell, has_rung: bool },
    Elsewhere { desk: Arc<Desk<C>>, client: Bell, told: u64 },
}

/// A replica's state machine.
pub struct Machine<C> {
    state: State,
    load: Load<C>,
}

impl<C: Command> Machine<C> {
    /// What a snapshot holds.
    pub fn state(&self) -> State {
        self.state
    }

    /// Goes on from a snapshot.
    pub fn restore(&mut self, state: State) {
        self.state = state;
    }

    #[inline]
    pub fn apply(&mut self, transition: &Transition<C>) {
        if transition.is_noop() {
            return;
        }
        self.state.apply(transition.0.as_slice());
        match &mut self.load {
            Load::Nobody => {}
            Load::Here { client, replica, has_rung } => {
                client.observe(self.state.count);
                if !*has_rung {
                    *has_rung = true;
                    replica.ring();
                }
            }
            Load::Elsewhere { desk, client, told } => {
                desk.applied.store(self.state.count, Ordering::Release);
                // Only the first since the client was last heard: one wake-up for many commands.
                if *told == 0 {
                    *told = self.state.count;
                    client.ring();
                }
            }
        }
    }

    /// Called by the replica when its bell for transitions rang.
    pub fn take_pending(&mut self) -> Vec<Transition<C>> {
        match &mut self.load {
            Load::Nobody => Vec::new(),
            Load::Here { client, has_rung, .. } => {
                *has_rung = false;
                client
                    .next(self.state.count)
                    .map(|number| Transition(C::numbered(number)))
                    .collect()
            }
            Load::Elsewhere { desk, client, told } => {
                // The client may have gone back to sleep before the last ones were applied.
                if *told != 0 && *told != self.state.count {
                    client.ring();
                }
                *told = 0;
                std::mem::take(&mut *lock(&desk.pending))
            }
        }
    }
}

/// A replica's way to the others. `M` is the library's message.
pub struct Network<M> {
    id: usize,
    mailboxes: Arc<Vec<Mailbox<M>>>,
    leads: Arc<AtomicBool>,
    halt: Arc<AtomicBool>,
}

struct Mailbox<M> {
    messages: Mutex<Vec<M>>,
    bell: Bell,
}

impl<M> Network<M> {
    pub fn send(&mut self, to: usize, message: M) {
        let mailbox = &self.mailboxes[to];
        lock(&mailbox.messages).push(message);
        mailbox.bell.ring();
    }

    pub fn receive(&mut self) -> Vec<M> {
        std::mem::take(&mut *lock(&self.mailboxes[self.id].messages))
    }

    pub fn should_halt(&self) -> bool {
        self.halt.load(Ordering::Relaxed)
    }

    pub fn register_leader(&mut self, leader: Option<usize>) {
        if self.id == 0 {
            self.leads.store(leader == Some(0), Ordering::Release);
        }
    }
}

type Shared<T> = Arc<Mutex<T>>;

/// All that an adapter needs to make a replica and to start it in its thread.
pub struct Parts<C, M> {
    pub id: usize,
    pub peer_ids: Vec<usize>,
    pub machine: Shared<Machine<C>>,
    pub network: Shared<Network<M>>,
    pub messages: Receiver<()>,
    pub transitions: Receiver<()>,
}

/// Runs three replicas, each by `start` in a thread of its own, until the client is satisfied.
/// Replica 0 is started first, so that it is the first to stand for election.
pub fn measure<C, M>(
    setup: &Setup,
    client: Client,
    start: fn(Parts<C, M>),
) -> Result<Measurement, String>
where
    C: Command,
    M: Send + 'static,
{
    let (leads, halt) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (machines, bells) = start_replicas(start, &leads, &halt);
    wait_for_leader(&leads)?;
    // Not before: a library may take transitions while it is not the leader, to abandon them.
    let (load, waiting) = divide(setup.scenario.place, client, &bells[0]);
    lock(&machines[0]).load = load;
    bells[0].ring();
    let client = match waiting {
        Some(waiting) => Some(waiting.serve(&bells[0])),
        None => wait_for_client(&machines[0]),
    };
    let client = client.expect("the client is somewhere");
    let read = || machines.iter().map(|machine| lock(machine).state).collect();
    let states = settle(client.proposed(), read);
    halt.store(true, Ordering::Relaxed);
    // The replicas end with the process at the latest, and must not find before that nobody is
    // left to ring: the published Little Raft panics then.
    std::mem::forget(bells);
    client.measurement(states)
}

/// Gives back the state machines, and the bells for transitions.
fn start_replicas<C: Command, M: Send + 'static>(
    start: fn(Parts<C, M>),
    leads: &Arc<AtomicBool>,
    halt: &Arc<AtomicBool>,
) -> (Vec<Shared<Machine<C>>>, Vec<Bell>) {
    let (message_bells, message_rings): (Vec<_>, Vec<_>) =
        (0..REPLICAS).map(|_| Bell::new()).unzip();
    let (transition_bells, transition_rings): (Vec<_>, Vec<_>) =
        (0..REPLICAS).map(|_| Bell::new()).unzip();
    let mailbox = |bell| Mailbox { messages: Mutex::new(Vec::new()), bell };
    let mailboxes = Arc::new(message_bells.into_iter().map(mailbox).collect::<Vec<_>>());
    let mut machines = Vec::new();
    let rings = message_rings.into_iter().zip(transition_rings);
    for (id, (messages, transitions)) in rings.enumerate() {
        let machine = Machine { state: State::default(), load: Load::Nobody };
        let machine = Arc::new(Mutex::new(machine));
        machines.push(machine.clone());
        let (mailboxes, leads, halt) = (mailboxes.clone(), leads.clone(), halt.clone());
        let network = Arc::new(Mutex::new(Network { id, mailboxes, leads, halt }));
        let peer_ids = (0..REPLICAS).filter(|peer| *peer != id).collect();
        let parts = Parts { id, peer_ids, machine, network, messages, transitions };
        thread::spawn(move || start(parts));
        thread::sleep(HEAD_START);
    }
    (machines, transition_bells)
}

/// A client that is not in the leader's thread, before it has begun.
struct Waiting<C> {
    client: Client,
    desk: Arc<Desk<C>>,
    rings: Receiver<()>,
}

fn divide<C>(place: Place, client: Client, replica: &Bell) -> (Load<C>, Option<Waiting<C>>) {
    if place == Place::WithLeader {
        let (client, replica) = (Box::new(client), replica.clone());
        return (Load::Here { client, replica, has_rung: false }, None);
    }
    let (bell, rings) = Bell::new();
    let desk = Arc::new(Desk { pending: Mutex::new(Vec::new()), applied: AtomicU64::new(0) });
    let waiting = Waiting { client, desk: desk.clone(), rings };
    (Load::Elsewhere { desk, client: bell, told: 0 }, Some(waiting))
}

impl<C: Command> Waiting<C> {
    /// The client in a thread of its own, which is the caller's.
    fn serve(mut self, replica: &Bell) -> Client {
        loop {
            let numbers = self.client.next(self.desk.applied.load(Ordering::Acquire));
            if self.client.is_finished() {
                return self.client;
            }
            if !numbers.is_empty() {
                let transitions = numbers.map(|number| Transition(C::numbered(number)));
                lock(&self.desk.pending).extend(transitions);
                replica.ring();
            }
            if self.rings.recv().is_err() {
                return self.client;
            }
        }
    }
}

fn wait_for_leader(leads: &AtomicBool) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !leads.load(Ordering::Acquire) {
        if Instant::now() > deadline {
            return Err("replica 0 did not come to lead within 5 s; \
                        the machine may be too busy, try again"
                .into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Polls seldom, because it takes the lock that the leader works under.
fn wait_for_client<C>(leader: &Mutex<Machine<C>>) -> Option<Client> {
    loop {
        thread::sleep(Duration::from_millis(10));
        let mut machine = lock(leader);
        match &machine.load {
            Load::Here { client, .. } if client.is_finished() => {}
            Load::Here { .. } => continue,
            _ => return None,
        }
        if let Load::Here { client, .. } = std::mem::replace(&mut machine.load, Load::Nobody) {
            return Some(*client);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
