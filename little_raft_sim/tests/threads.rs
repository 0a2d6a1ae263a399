//! The cluster of threads, used as a test of a user's own state machine would use it.

use little_raft::{
    Change, Message, ReadState, ReplicaID, Snapshot, StateMachine, StateMachineTransition, Storage,
    TransitionState,
};
use little_raft_sim::MemoryStorage;
use little_raft_sim::threads::{Threads, Weather};
use std::io;
use std::time::Duration;

/// No condition takes this long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Enough for several elections, when nothing is expected to happen.
const A_WHILE: Duration = Duration::from_millis(900);

/// Writes a number down.
#[derive(Clone, Debug, PartialEq)]
struct Note(u64);

impl StateMachineTransition for Note {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.0
    }
}

/// The numbers in the order in which they came, each once.
#[derive(Clone, Debug, Default)]
struct Notes {
    noted: Vec<u64>,
    ends: Vec<(u64, TransitionState)>,
    /// Reads, and how many notes there were when they became ready.
    reads: Vec<(u64, ReadState, usize)>,
}

/// This number is more than a state machine can bear.
const POISON: u64 = 666;

impl StateMachine<Note, Vec<u64>> for Notes {
    fn register_transition_state(&mut self, id: u64, state: TransitionState) {
        if matches!(state, TransitionState::Applied | TransitionState::Abandoned(_)) {
            self.ends.push((id, state));
        }
    }

    fn apply_transition(&mut self, Note(number): Note) {
        assert_ne!(number, POISON, "this number is poison");
        if number > 0 && !self.noted.contains(&number) {
            self.noted.push(number);
        }
    }

    fn get_pending_transitions(&mut self) -> Vec<Note> {
        Vec::new()
    }

    fn create_snapshot(&mut self, index: usize, term: usize) -> Snapshot<Vec<u64>> {
        let data = self.noted.clone();
        Snapshot { last_included_index: index, last_included_term: term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Vec<u64>>) {
        self.noted = snapshot.data;
    }

    fn register_read_state(&mut self, id: u64, state: ReadState) {
        self.reads.push((id, state, self.noted.len()));
    }
}

type Disk = MemoryStorage<Note, Vec<u64>>;
type Cluster = Threads<Notes, Note, Vec<u64>>;

fn cluster(replicas: usize) -> Cluster {
    let disks: [Disk; 3] = Default::default();
    Threads::new(replicas, Note(0), |_| Notes::default(), move |id| disks[id].clone())
}

fn restart_dead(cluster: &mut Cluster) {
    let dead: Vec<ReplicaID> = (0..3).filter(|id| !cluster.is_up(*id)).collect();
    dead.into_iter().for_each(|id| cluster.restart(id));
}

fn noted(cluster: &Cluster, id: ReplicaID) -> Vec<u64> {
    cluster.inspect(id, |notes| notes.noted.clone())
}

/// Waits until all of them have noted the same, this number included.
fn agree(cluster: &mut Cluster, ids: &[ReplicaID], number: u64) -> Vec<u64> {
    let same = |cluster: &Cluster| {
        let first = noted(cluster, ids[0]);
        first.contains(&number) && ids.iter().all(|id| noted(cluster, *id) == first)
    };
    cluster.wait_until(same, PATIENCE).expect("replicas agree");
    noted(cluster, ids[0])
}

#[test]
fn what_is_acknowledged_survives_bad_weather_and_violent_deaths() {
    let bad = Weather { lost: 150_000, duplicated: 150_000, delay: Duration::from_millis(8) };
    let mut cluster = cluster(3).with_snapshots(4).with_faults(11, bad).start();
    for number in 1..=30 {
        let at = cluster.submit(Note(number), PATIENCE).expect("a quorum is up");
        match number % 6 {
            2 => cluster.kill(at),
            3 => restart_dead(&mut cluster),
            4 => cluster.cut_one_way(at, (at + 1) % 3),
            5 => cluster.heal(),
            _ => {}
        }
    }
    cluster.set_weather(Weather::default());
    cluster.heal();
    restart_dead(&mut cluster);
    let all = agree(&mut cluster, &[0, 1, 2], 30);
    assert_eq!(all, (1..=30).collect::<Vec<_>>(), "in the order in which they were submitted");
}

#[test]
fn a_whole_cluster_comes_back_with_what_its_storages_hold() {
    let mut keeps = cluster(3).start();
    keeps.submit(Note(1), PATIENCE).expect("a quorum is up");
    (0..3).for_each(|id| keeps.kill(id));
    assert!((0..3).all(|id| !keeps.is_up(id) && keeps.status(id).is_none()));
    (0..3).for_each(|id| keeps.restart(id));
    assert_eq!(agree(&mut keeps, &[0, 1, 2], 1), [1]);

    // Storages that forget lose it, and the cluster shows that.
    let mut forgets = Threads::new(3, Note(0), |_| Notes::default(), |_| Disk::default()).start();
    forgets.submit(Note(1), PATIENCE).expect("a quorum is up");
    (0..3).for_each(|id| forgets.restart(id));
    forgets.submit(Note(2), PATIENCE).expect("a quorum is up");
    assert_eq!(agree(&mut forgets, &[0, 1, 2], 2), [2]);
}

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_its_proposal_overwritten() {
    let mut cluster = cluster(3).start();
    let old = cluster.submit(Note(1), PATIENCE).expect("a quorum is up");
    cluster.isolate(old);
    cluster.propose(old, Note(2));
    let others: Vec<ReplicaID> = (0..3).filter(|id| *id != old).collect();
    let elsewhere = |cluster: &Cluster| cluster.leader().is_some_and(|id| id != old);
    cluster.wait_until(elsewhere, PATIENCE).expect("the others elect one of them");
    let new = cluster.submit(Note(3), PATIENCE).expect("a quorum is connected");
    assert!(others.contains(&new));
    assert_eq!(agree(&mut cluster, &others, 3), [1, 3]);
    cluster.heal();
    assert_eq!(agree(&mut cluster, &[0, 1, 2], 3), [1, 3]);
    let ended = |cluster: &Cluster| {
        cluster.inspect(old, |notes| {
            notes
                .ends
                .iter()
                .any(|(id, end)| *id == 2 && matches!(end, TransitionState::Abandoned(_)))
        })
    };
    cluster.wait_until(ended, PATIENCE).expect("whoever proposed is told");
}

#[test]
fn a_leader_that_nobody_hears_is_replaced_although_it_hears_all() {
    let mut cluster = cluster(3).start();
    let old = cluster.submit(Note(1), PATIENCE).expect("a quorum is up");
    (0..3).filter(|id| *id != old).for_each(|id| cluster.cut_one_way(old, id));
    let others: Vec<ReplicaID> = (0..3).filter(|id| *id != old).collect();
    let elsewhere = |cluster: &Cluster| cluster.leader().is_some_and(|id| id != old);
    cluster.wait_until(elsewhere, PATIENCE).expect("the others elect one of them");
    cluster.submit(Note(2), PATIENCE).expect("a quorum is connected");
    assert_eq!(agree(&mut cluster, &others, 2), [1, 2]);
    assert_eq!(agree(&mut cluster, &[old], 2), [1, 2], "it still hears");
}

#[test]
fn without_a_single_message_nothing_happens_and_the_report_says_so() {
    let silence = Weather { lost: 1_000_000, ..Weather::default() };
    let mut cluster = cluster(3).with_faults(1, silence).start();
    let late = cluster.submit(Note(1), A_WHILE).expect_err("nobody can be elected");
    let report = late.to_string();
    assert!(report.contains("within") && report.contains("PreCandidate"), "{report}");
    assert_eq!(report.lines().count(), 4, "a line for each replica: {report}");
    cluster.set_weather(Weather::default());
    cluster.submit(Note(2), PATIENCE).expect("messages travel again");
    assert_eq!(agree(&mut cluster, &[0, 1, 2], 2), [2]);
}

/// A disk that takes only so many saves.
struct Breaks(Disk, usize);

impl Storage<Note, Vec<u64>> for Breaks {
    fn load(&mut self) -> io::Result<Change<Note, Vec<u64>>> {
        self.0.load()
    }

    fn save(&mut self, change: Change<Note, Vec<u64>>) -> io::Result<()> {
        self.1 = self.1.checked_sub(1).ok_or_else(|| io::Error::other("it is worn out"))?;
        self.0.save(change)
    }
}

#[test]
fn a_replica_whose_storage_breaks_is_down_and_the_others_go_on() {
    let disks: [Disk; 3] = Default::default();
    let storage = move |id: ReplicaID| Breaks(disks[id].clone(), [4, 10_000, 10_000][id]);
    let mut cluster = Threads::new(3, Note(0), |_| Notes::default(), storage).start();
    for number in 1..=10 {
        // A leader that breaks does not say what becomes of its last proposal.
        while cluster.submit(Note(number), A_WHILE).is_err() {}
    }
    cluster.wait_until(|cluster| !cluster.is_up(0), PATIENCE).expect("it is worn out");
    assert_eq!(agree(&mut cluster, &[1, 2], 10), (1..=10).collect::<Vec<_>>());
    let late = cluster.wait_until(|_| false, Duration::ZERO).expect_err("that never comes");
    assert!(late.to_string().contains("0 ended: Err"), "{late}");
    assert!(late.to_string().contains("it is worn out"), "{late}");
    // With a new lease of life it catches up.
    cluster.restart(0);
    cluster.wait_until(|cluster| !noted(cluster, 0).is_empty(), PATIENCE).expect("it is back");
}

#[test]
fn replicas_join_and_serve_reads() {
    let mut cluster = cluster(1).with_joining(2).start();
    cluster.submit(Note(1), PATIENCE).expect("one voter is enough");
    cluster.ask(0, Message::change_membership(vec![0, 1, 2], vec![]));
    let joined = |cluster: &Cluster| {
        let status = cluster.status(2);
        status
            .is_some_and(|it| it.membership.voters.len() == 3 && it.membership.outgoing.is_empty())
    };
    cluster.wait_until(joined, PATIENCE).expect("the change is complete");
    cluster.submit(Note(2), PATIENCE).expect("a quorum is up");
    let answered = |cluster: &Cluster| {
        cluster.read(2, 7);
        cluster.inspect(2, |notes| {
            notes
                .reads
                .iter()
                .any(|(id, state, seen)| (*id, *state, *seen) == (7, ReadState::Ready, 2))
        })
    };
    cluster.wait_until(answered, PATIENCE).expect("a read at a follower sees both");
    let early = cluster
        .inspect(2, |notes| notes.reads.iter().any(|it| it.1 == ReadState::Ready && it.2 < 2));
    assert!(!early, "no read is ready that misses what was acknowledged before");
}

#[test]
#[should_panic(expected = "this number is poison")]
fn a_panic_in_a_state_machine_is_the_tests() {
    let mut cluster = cluster(1).start();
    let _ = cluster.submit(Note(POISON), PATIENCE);
}
