//! Replicas and all that their users give them, with a point to stop at in everything that they
//! call.

pub(crate) use crate::common::{Letter, NOOP, Write};
use crate::controller::{Controller, Play, pause, wait_until};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use little_raft::{
    Body, Change, Cluster, LogId, Message, ReadState, Replica, Snapshot, StateMachine, Status,
    Storage, TransitionState,
};
use little_raft_sim::MemoryStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Result as IoResult};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::Duration;

/// How time and everything else is in a play.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How many replicas there are.
    pub(crate) replicas: usize,
    /// How many voters there are; the test speaks for those that are no replicas.
    pub(crate) voters: usize,
    /// An hour for none to pass during a play.
    pub(crate) heartbeat: Duration,
    /// Whether replica 1 leads when the users begin. Else it follows 2 or, if time passes,
    /// whomever.
    pub(crate) leads: bool,
    /// Whether cluster and state machine are behind one mutex.
    pub(crate) one_mutex: bool,
    /// Whether the channels take one token only.
    pub(crate) bounded: bool,
    /// How often each replica is started again after a halt.
    pub(crate) restarts: usize,
    /// Which call of the storage fails, counted from 1 once the users have begun; 0 for none.
    pub(crate) fails_at: usize,
    /// After how many entries a snapshot is taken.
    pub(crate) snapshots: usize,
}

impl Terms {
    pub(crate) const TIMELESS: Terms = Terms {
        replicas: 1,
        voters: 3,
        heartbeat: Duration::from_secs(3600),
        leads: true,
        one_mutex: false,
        bounded: true,
        restarts: 0,
        fails_at: 0,
        snapshots: 0,
    };
}

impl Terms {
    /// Whether time passes during a play.
    pub(crate) fn is_timed(&self) -> bool {
        self.heartbeat < Duration::from_secs(1)
    }
}

/// Which of the two mutexes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Which {
    Cluster,
    StateMachine,
}

/// Everything about one replica that threads share.
pub(crate) struct Host {
    pub(crate) id: usize,
    pub(crate) halt: AtomicBool,
    /// Whether the replica goes on without stopping, until there is a leader.
    prelude: AtomicBool,
    mutexes: [Arc<Mutex<Desk>>; 2],
    /// Whether a user holds them.
    held: [AtomicBool; 2],
    /// What a user rings when there are messages, and when there are transitions.
    bells: [Mutex<Option<Sender<()>>>; 2],
    heard: [Receiver<()>; 2],
    peers: OnceLock<Vec<Weak<Host>>>,
    data: Mutex<Data>,
    saves: AtomicUsize,
}

#[derive(Default)]
pub(crate) struct Data {
    pub(crate) inbox: Vec<Letter>,
    /// What was sent to voters that are no replicas.
    pub(crate) sent: Vec<(usize, Letter)>,
    pub(crate) pending: Vec<Write>,
    pub(crate) questions: Vec<usize>,
    pub(crate) written: Vec<usize>,
    pub(crate) ended: BTreeMap<usize, TransitionState>,
    pub(crate) answered: BTreeMap<usize, ReadState>,
    /// What users wanted of this replica, and said so.
    pub(crate) asked: BTreeSet<usize>,
    pub(crate) status: Option<Status>,
    /// How each run of the replica has ended.
    pub(crate) results: Vec<Result<(), String>>,
}

impl Host {
    fn new(id: usize, terms: &Terms) -> Arc<Host> {
        let bell = || if terms.bounded { bounded(1) } else { unbounded() };
        let (bells, heard): (Vec<_>, Vec<_>) = [bell(), bell()].into_iter().unzip();
        let bells = bells.into_iter().map(|bell| Mutex::new(Some(bell))).collect::<Vec<_>>();
        let desk = || Arc::new(Mutex::new(Desk(OnceLock::new())));
        let first = desk();
        let mutexes = [first.clone(), if terms.one_mutex { first } else { desk() }];
        let host = Arc::new(Host {
            id,
            halt: AtomicBool::new(false),
            prelude: AtomicBool::new(true),
            mutexes,
            held: Default::default(),
            bells: bells.try_into().expect("two"),
            heard: heard.try_into().expect("two"),
            peers: OnceLock::new(),
            data: Mutex::default(),
            saves: AtomicUsize::new(0),
        });
        for mutex in &host.mutexes {
            let _ = mutex.lock().expect("new").0.set(Arc::downgrade(&host));
        }
        host
    }

    pub(crate) fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.prelude.load(SeqCst)
    }

    /// Sends a token, if the channel is still connected.
    pub(crate) fn ring(&self, which: Which) {
        let bell = self.bells[which as usize].lock().unwrap_or_else(PoisonError::into_inner);
        bell.iter().for_each(|bell| _ = bell.try_send(()));
    }

    /// Disconnects a channel.
    pub(crate) fn disconnect(&self, which: Which) {
        self.bells[which as usize].lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(crate) fn deliver(&self, letter: Letter) {
        self.data().inbox.push(letter);
    }

    /// Holds a mutex as a user does, with a point before, in and after it.
    pub(crate) fn hold<R>(&self, which: Which, work: impl FnOnce() -> R) -> R {
        pause("user: lock");
        let guard = self.mutexes[which as usize].lock();
        self.held[which as usize].store(true, SeqCst);
        pause("user: holds the mutex");
        let result = work();
        pause("user: unlock");
        self.held[which as usize].store(false, SeqCst);
        drop(guard);
        result
    }

    /// Panics while it holds a mutex, as a user may.
    pub(crate) fn poison(&self, which: Which) {
        let poisoned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = self.mutexes[which as usize].lock();
            self.held[which as usize].store(true, SeqCst);
            pause("user: holds the mutex");
            self.held[which as usize].store(false, SeqCst);
            std::panic::resume_unwind(Box::new("a panic of the user's"));
        }));
        assert!(poisoned.is_err());
    }

    /// Whether the replica is not going to run any more.
    fn has_ended(&self, terms: &Terms) -> bool {
        let data = self.data();
        data.results.len() > terms.restarts || data.results.iter().any(Result::is_err)
    }

    fn pause(&self, point: &'static str) {
        if self.is_ready() {
            pause(point);
        }
    }

    /// Whether the replica holds a mutex, since it is not free and no user has it.
    fn replica_holds(&self, which: Which) -> bool {
        let is_held =
            matches!(self.mutexes[which as usize].try_lock(), Err(TryLockError::WouldBlock));
        is_held && !self.held[which as usize].load(SeqCst)
    }

    /// What of the users' wishes is left to do; they have all said so.
    fn left_to_do(&self) -> Result<(), String> {
        let data = self.data();
        let id = self.id;
        let is_over = |it: &usize| data.ended.contains_key(it) || data.answered.contains_key(it);
        let open: Vec<_> = data.asked.iter().filter(|it| !is_over(it)).collect();
        if !data.inbox.is_empty() {
            return Err(format!("replica {id} leaves {} messages unread", data.inbox.len()));
        }
        if !data.pending.is_empty() || !data.questions.is_empty() {
            return Err(format!("replica {id} leaves {:?} unasked for", data.pending));
        }
        if open.is_empty() { Ok(()) } else { Err(format!("replica {id} never ends {open:?}")) }
    }
}

/// What a replica takes for its cluster and its state machine.
pub(crate) struct Desk(OnceLock<Weak<Host>>);

impl Desk {
    fn host(&self) -> Arc<Host> {
        self.0.get().and_then(Weak::upgrade).expect("its thread keeps it")
    }

    fn at(&self, point: &'static str) -> Arc<Host> {
        let host = self.host();
        host.pause(point);
        host
    }
}

impl StateMachine<Write, Vec<usize>> for Desk {
    fn register_transition_state(&mut self, id: usize, state: TransitionState) {
        let host = self.at("state machine: register_transition_state");
        match state {
            TransitionState::Applied | TransitionState::Abandoned(_) if id != NOOP => {
                let mut data = host.data();
                let asked = data.asked.contains(&id);
                let before = data.ended.insert(id, state);
                assert!(!asked || before.is_none(), "{id} ends twice");
            }
            TransitionState::Applied => host.prelude.store(false, SeqCst),
            _ => {}
        }
    }

    fn apply_transition(&mut self, Write(id): Write) {
        self.at("state machine: apply_transition").data().written.push(id);
    }

    fn get_pending_transitions(&mut self) -> Vec<Write> {
        let host = self.at("state machine: get_pending_transitions");
        let pending = std::mem::take(&mut host.data().pending);
        host.pause("state machine: get_pending_transitions, after");
        pending
    }

    fn get_pending_reads(&mut self) -> Vec<usize> {
        let host = self.at("state machine: get_pending_reads");
        let questions = std::mem::take(&mut host.data().questions);
        host.pause("state machine: get_pending_reads, after");
        questions
    }

    fn register_read_state(&mut self, id: usize, state: ReadState) {
        let before =
            self.at("state machine: register_read_state").data().answered.insert(id, state);
        assert!(before.is_none(), "read {id} is answered twice");
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Vec<usize>> {
        let data = self.at("state machine: create_snapshot").data().written.clone();
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Vec<usize>>) {
        self.at("state machine: set_snapshot").data().written = snapshot.data;
    }
}

impl Cluster<Write, Vec<usize>> for Desk {
    fn send_message(&mut self, to_id: usize, letter: Letter) {
        let host = self.at("cluster: send_message");
        let mut peers = host.peers.get().into_iter().flatten().filter_map(Weak::upgrade);
        match peers.find(|peer| peer.id == to_id) {
            Some(peer) => {
                peer.deliver(letter);
                host.pause("cluster: send_message, token");
                peer.ring(Which::Cluster);
            }
            None if host.is_ready() => host.data().sent.push((to_id, letter)),
            None => {
                let answers = answer(to_id, letter);
                host.data().inbox.extend(answers);
                host.ring(Which::Cluster);
            }
        }
    }

    fn receive_messages(&mut self) -> Vec<Letter> {
        let host = self.at("cluster: receive_messages");
        let inbox = std::mem::take(&mut host.data().inbox);
        host.pause("cluster: receive_messages, after");
        inbox
    }

    fn halt(&self) -> bool {
        self.at("cluster: halt").halt.load(SeqCst)
    }

    fn register_leader(&mut self, _leader_id: Option<usize>) {
        self.at("cluster: register_leader");
    }

    fn register_status(&mut self, status: Status) {
        self.at("cluster: register_status").data().status = Some(status);
    }
}

/// A storage that stops at points too, and may fail.
struct Disk {
    memory: MemoryStorage<Write, Vec<usize>>,
    host: Arc<Host>,
    fails_at: usize,
}

impl Storage<Write, Vec<usize>> for Disk {
    fn load(&mut self) -> IoResult<Change<Write, Vec<usize>>> {
        self.host.pause("storage: load");
        self.memory.load()
    }

    fn save(&mut self, change: Change<Write, Vec<usize>>) -> IoResult<()> {
        self.host.pause("storage: save");
        if self.host.is_ready() && self.host.saves.fetch_add(1, SeqCst) + 1 == self.fails_at {
            return Err(Error::other("the disk has failed"));
        }
        self.memory.save(change)
    }
}

/// What a voter that is no replica answers: it holds everything and votes for everybody.
fn answer(id: usize, letter: Letter) -> Option<Letter> {
    let Message { term, body, .. } = letter;
    let body = match body {
        Body::RequestVote { pre, .. } => Body::Vote { pre, granted: true },
        Body::AppendEntries { prev, runs, round, .. } => {
            let last = runs.last().map_or(prev.index, |run| run.last().index);
            Body::Appended { result: Ok(last), round }
        }
        Body::ReadIndex { context } => Body::ReadIndexResponse { context, index: 0 },
        _ => return None,
    };
    Some(Message { from_id: id, term, body })
}

/// All replicas and their users.
pub(crate) struct World {
    pub(crate) terms: Terms,
    pub(crate) hosts: Vec<Arc<Host>>,
    is_over: Arc<AtomicBool>,
    /// Whether a user panics with one of the mutexes.
    pub(crate) is_poisoned: bool,
}

impl World {
    /// The replicas, each in a thread of its own.
    pub(crate) fn new(controller: &Controller, terms: Terms) -> World {
        let hosts: Vec<_> = (1..=terms.replicas).map(|id| Host::new(id, &terms)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        for host in &hosts {
            host.peers
                .set(hosts.iter().map(Arc::downgrade).collect())
                .unwrap_or_else(|_| panic!("set once"));
            let (host, is_over) = (host.clone(), is_over.clone());
            let name = format!("replica {}", host.id);
            controller.server(&name, move || run(&host, &terms, &is_over));
        }
        let world = World { terms, hosts, is_over, is_poisoned: false };
        world.begin();
        world
    }

    /// Lets there be a leader, by messages since time does not pass.
    fn begin(&self) {
        if self.time_passes() {
            return;
        }
        let host = &self.hosts[0];
        let (prev, runs) = (LogId::default(), Vec::new());
        let append = Body::AppendEntries { prev, runs, commit: 0, round: Duration::ZERO };
        let bodies = [append, Body::TimeoutNow];
        for body in bodies.into_iter().take(if self.terms.leads { 2 } else { 1 }) {
            host.deliver(Message { from_id: 2, term: 1, body });
        }
        host.ring(Which::Cluster);
        if !self.terms.leads {
            host.prelude.store(false, SeqCst);
        }
        // The others follow, and need not have applied anything before the users begin.
        self.hosts[1..].iter().for_each(|host| host.prelude.store(false, SeqCst));
    }

    /// The voters that are no replicas, as one thread.
    pub(crate) fn voters(&self, controller: &Controller) {
        for host in &self.hosts {
            let (host, is_over) = (host.clone(), self.is_over.clone());
            controller.server("voters", move || {
                while !is_over.load(SeqCst) {
                    let (there, over) = (host.clone(), is_over.clone());
                    wait_until("voters: wait for messages", move || {
                        !there.data().sent.is_empty() || over.load(SeqCst)
                    });
                    let sent = std::mem::take(&mut host.data().sent);
                    let answers: Vec<_> = sent
                        .into_iter()
                        .filter_map(|(to_id, letter)| answer(to_id, letter))
                        .collect();
                    if !answers.is_empty() && !is_over.load(SeqCst) {
                        pause("voters: answer");
                        host.data().inbox.extend(answers);
                        pause("voters: token");
                        host.ring(Which::Cluster);
                    }
                }
            });
        }
    }
}

/// What the thread of a replica does.
fn run(host: &Arc<Host>, terms: &Terms, is_over: &Arc<AtomicBool>) {
    let peers = (1..=terms.voters).filter(|id| *id != host.id).collect();
    let [cluster, state_machine] = host.mutexes.clone();
    let election = (terms.heartbeat * 4, terms.heartbeat * 8);
    let disk =
        Disk { memory: MemoryStorage::default(), host: host.clone(), fails_at: terms.fails_at };
    let noop = Write(NOOP);
    let mut replica =
        Replica::new(host.id, peers, cluster, state_machine, noop, terms.heartbeat, election)
            .with_snapshots(terms.snapshots)
            .with_storage(disk);
    let [messages, transitions] = &host.heard;
    for restart in 0..=terms.restarts {
        let result = replica.start(messages.clone(), transitions.clone());
        host.data().results.push(result.map_err(|error| error.to_string()));
        host.prelude.store(false, SeqCst);
        if restart == terms.restarts || host.data().results.last() != Some(&Ok(())) {
            break;
        }
        let (there, over) = (host.clone(), is_over.clone());
        wait_until("start again", move || !there.halt.load(SeqCst) || over.load(SeqCst));
        if is_over.load(SeqCst) {
            break;
        }
    }
}

impl Play for World {
    fn law(&self, points: &[(&str, &str)]) -> Result<(), String> {
        for host in &self.hosts {
            let name = format!("replica {}", host.id);
            let Some((_, point)) = points.iter().find(|(who, _)| *who == name) else { continue };
            let other = match point.split_once(':') {
                _ if self.terms.one_mutex => &[][..],
                Some(("cluster", _)) => &[Which::StateMachine][..],
                Some(("state machine", _)) => &[Which::Cluster],
                _ => &[Which::StateMachine, Which::Cluster],
            };
            if let Some(which) = other.iter().find(|which| host.replica_holds(**which)) {
                return Err(format!("{name} holds the mutex of the {which:?} in {point:?}"));
            }
        }
        Ok(())
    }

    fn is_done(&self) -> Result<(), String> {
        for host in &self.hosts {
            match host.has_ended(&self.terms) {
                // One that has ended may leave things undone.
                true => {}
                false if host.halt.load(SeqCst) => {
                    return Err(format!("replica {} does not end, though it is to halt", host.id));
                }
                false => host.left_to_do()?,
            }
        }
        Ok(())
    }

    fn verdict(&self) -> Result<(), String> {
        for host in &self.hosts {
            let results = host.data().results.clone();
            let failing = self.terms.fails_at > 0 && host.saves.load(SeqCst) >= self.terms.fails_at;
            if results.iter().any(Result::is_err) != (failing || self.is_poisoned) {
                return Err(format!("replica {} ended with {results:?}", host.id));
            }
        }
        Ok(())
    }

    fn end(&self) {
        self.is_over.store(true, SeqCst);
        for host in &self.hosts {
            host.halt.store(true, SeqCst);
            // Without a token it looks once per heartbeat.
            if !self.time_passes() {
                host.ring(Which::Cluster);
                host.ring(Which::StateMachine);
            }
        }
    }

    fn time_passes(&self) -> bool {
        self.terms.is_timed()
    }
}
