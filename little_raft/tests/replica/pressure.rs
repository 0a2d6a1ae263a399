//! Too much to do: back-pressure, and heartbeats in spite of it.

use crate::support::*;
use crossbeam_channel::{Sender, bounded};
use little_raft::{Body, Replica, Run, StateMachine, TransitionState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// More transitions than a replica may hold at once.
const FLOOD: usize = 200_000;
/// How many of them one poll brings, if there is more than one.
const WAVE: usize = 5_000;

/// What the test may look at while the replica holds the mutex, which it does nearly always.
#[derive(Default)]
struct Level {
    handed: AtomicUsize,
    applied: AtomicUsize,
    most_underway: AtomicUsize,
    polled_at_turn: AtomicUsize,
    slow: AtomicBool,
}

/// A user with more to do than can be done, who notifies again as soon as he is polled.
struct Flood {
    bell: Sender<()>,
    shared: Arc<Shared>,
    level: Arc<Level>,
    wave: usize,
}

impl StateMachine<Write, Vec<usize>> for Flood {
    fn register_transition_state(&mut self, id: usize, state: TransitionState) {
        assert!(!matches!(state, TransitionState::Abandoned(_)), "{id} is dropped: {state:?}");
    }

    fn apply_transition(&mut self, Write(id): Write) {
        if id != NOOP {
            let before = self.level.applied.fetch_add(1, SeqCst);
            assert_eq!(id, before + 1, "in order, and none is missing");
            if self.level.slow.load(SeqCst) {
                thread::sleep(HEARTBEAT / 250);
            }
        }
    }

    fn get_pending_transitions(&mut self) -> Vec<Write> {
        let level = &self.level;
        let handed = level.handed.load(SeqCst);
        let next = FLOOD.min(handed + self.wave);
        level.handed.store(next, SeqCst);
        level.most_underway.fetch_max(next - level.applied.load(SeqCst), SeqCst);
        level.polled_at_turn.store(self.shared.turns.load(SeqCst), SeqCst);
        let _ = self.bell.try_send(());
        (handed + 1..=next).map(Write).collect()
    }
}

/// Floods a cluster of one, until all is applied. Calls `meanwhile` once it leads.
fn flood(wave: usize, slow: bool, meanwhile: impl FnOnce(&Level, &Shared)) {
    let (net, (bell, heard)) = (Net::new(1), bounded(1));
    let (wire, level) = (Wire::new(1, &net), Arc::new(Level::default()));
    level.slow.store(slow, SeqCst);
    let shared = wire.shared.clone();
    let it = Flood { bell: bell.clone(), shared: shared.clone(), level: level.clone(), wave };
    let (wire, it) = (Arc::new(Mutex::new(wire)), Arc::new(Mutex::new(it)));
    let mut replica = Replica::new(1, vec![], wire.clone(), it, Write(NOOP), HEARTBEAT, SOON);
    let recv_msg = net.bell(1);
    let thread = thread::spawn(move || replica.start(recv_msg, heard).unwrap());
    eventually("leadership", || {
        wire.lock().unwrap().status().is_some_and(|it| it.leader == Some(1))
    });
    let _ = bell.try_send(());
    meanwhile(&level, &shared);
    eventually("the end of the flood", || {
        assert!(!thread.is_finished(), "the replica ended");
        level.applied.load(SeqCst) == FLOOD
    });
    shared.halt.store(true, SeqCst);
    thread.join().unwrap();
}

#[test]
fn a_replica_stops_asking_while_too_much_is_underway_and_drops_nothing() {
    flood(WAVE, true, |level, shared| {
        // Without that, every turn would poll.
        eventually("turns without a poll, in spite of a notification", || {
            let turns = shared.turns.load(SeqCst);
            assert!(level.handed.load(SeqCst) < FLOOD, "it took everything");
            level.handed.load(SeqCst) > 0 && turns > level.polled_at_turn.load(SeqCst) + 3
        });
        let most = level.most_underway.load(SeqCst);
        assert!(most < FLOOD / 2, "{most} at once");
        // Now the log can drain: what follows is asked for without a further notification.
        level.slow.store(false, SeqCst);
    });
}

#[test]
fn nothing_is_dropped_for_being_too_many_at_once() {
    flood(FLOOD, false, |_, _| {});
}

#[test]
fn heartbeats_leave_between_transitions_that_take_long_to_apply() {
    let (node, mut puppet) = lead(|replica| replica);
    let (applied, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, record, shared) = (applied.clone(), most.clone(), node.shared.clone());
    let this_turn = Mutex::new((0, 0));
    node.book().probe = Some(Box::new(move |name| {
        if name == "apply_transition" {
            let (turn, mut this_turn) = (shared.turns.load(SeqCst), this_turn.lock().unwrap());
            *this_turn = (turn, if this_turn.0 == turn { this_turn.1 + 1 } else { 1 });
            record.fetch_max(this_turn.1, SeqCst);
            thread::sleep(HEARTBEAT);
            count.fetch_add(1, SeqCst);
        }
    }));
    puppet.letters.clear();
    node.book().pending.extend((1..=40).map(Write));
    node.ring();
    node.until("forty slow transitions", || {
        puppet.play();
        applied.load(SeqCst) == 40
    });
    let most = most.load(SeqCst);
    assert!(most <= 2, "{most} transitions of a whole heartbeat timeout each in one turn");
    let rounds = puppet.bodies().filter_map(|body| match body {
        Body::AppendEntries { round, .. } => Some(*round),
        _ => None,
    });
    let rounds: BTreeSet<_> = rounds.collect();
    assert!(rounds.len() >= 20, "{} heartbeats in forty heartbeat timeouts", rounds.len());
}

/// A follower that is sent these runs, all of them committed. Returns how many transitions it applies
/// in each turn, if each takes so long.
fn applied_in_turns(heartbeat: Duration, runs: Vec<Run<Write>>, each: Duration) -> Vec<usize> {
    let (net, book) = (Net::new(3), Arc::new(Mutex::new(Book::default())));
    let wire = Arc::new(Mutex::new(Wire::new(1, &net)));
    let node = Node::run(&wire, &book, &[2, 3], NEVER, |_| {
        Replica::new(1, vec![2, 3], wire.clone(), book.clone(), Write(NOOP), heartbeat, NEVER)
    });
    let (in_turns, shared) = (Arc::new(Mutex::new(BTreeMap::new())), node.shared.clone());
    let record = in_turns.clone();
    node.book().probe = Some(Box::new(move |name| {
        if name == "apply_transition" {
            let (turn, now) = (shared.turns.load(SeqCst), Instant::now());
            let mut record = record.lock().unwrap();
            let (began, count) = record.entry(turn).or_insert((now, 0));
            *count += 1;
            // If one takes longer, the next shall make up for it.
            let end = *began + each * *count;
            drop(record);
            thread::sleep(end.saturating_duration_since(now));
        }
    }));
    let last = runs.last().map_or(0, |run| run.last().index);
    node.hear(2, 1, append((0, 0), runs, last));
    let counts = || in_turns.lock().unwrap().values().map(|it| it.1 as usize).collect::<Vec<_>>();
    node.until("all is applied", || counts().iter().sum::<usize>() == last);
    node.shared.halt.store(true, SeqCst);
    node.ring();
    counts()
}

/// What is committed is applied as fast as it can be: run by run, and the next turn does not wait.
#[test]
fn what_is_committed_is_applied_at_once() {
    let ids: Vec<usize> = (1..=3_000).collect();
    let runs = ids.chunks(1_000).map(|ids| run(ids[0], 1, ids)).collect();
    let in_turns = applied_in_turns(NEVER.0 / 2, runs, Duration::ZERO);
    assert_eq!(in_turns, [1_000, 1_000, 1_000]);
}

/// Every 64 transitions somebody looks at the clock, whether they take long.
#[test]
fn a_turn_ends_soon_after_a_quarter_of_the_heartbeat_timeout() {
    let ids: Vec<usize> = (1..=600).collect();
    let each = Duration::from_millis(1);
    let in_turns = applied_in_turns(each * 4 * 150, vec![run(1, 1, &ids)], each);
    assert!(in_turns.iter().all(|count| *count < 150 + 64), "{in_turns:?}");
}
