//! A program as it was written for Little Raft 0.2.0. It differs from what that version compiled in
//! one place: `snapshot_delta` has moved from `new` to `with_snapshots`.

use crossbeam_channel::{Receiver, Sender, unbounded};
use little_raft::{
    cluster::Cluster,
    message::Message,
    replica::Replica,
    state_machine::{
        Snapshot, StateMachine, StateMachineTransition, TransitionAbandonedReason, TransitionState,
    },
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A deposit to an account, or a withdrawal if it is negative.
#[derive(Clone, Debug)]
struct Transfer {
    number: u64,
    account: &'static str,
    amount: i64,
}

impl StateMachineTransition for Transfer {
    type TransitionID = u64;

    fn get_id(&self) -> Self::TransitionID {
        self.number
    }
}

#[derive(Default)]
struct Bank {
    balances: HashMap<&'static str, i64>,
    desk: Vec<Transfer>,
    committed: Vec<u64>,
    applied: Vec<u64>,
    refused: Vec<u64>,
}

type Balances = Arc<HashMap<&'static str, i64>>;

impl StateMachine<Transfer, Balances> for Bank {
    fn register_transition_state(
        &mut self, transition_id: <Transfer as StateMachineTransition>::TransitionID,
        state: TransitionState,
    ) {
        match state {
            TransitionState::Queued => {}
            TransitionState::Committed => self.committed.push(transition_id),
            TransitionState::Applied => self.applied.push(transition_id),
            TransitionState::Abandoned(TransitionAbandonedReason::NotLeader) => {
                self.refused.push(transition_id)
            }
            TransitionState::Abandoned(_) => {}
        }
    }

    fn apply_transition(&mut self, transition: Transfer) {
        *self.balances.entry(transition.account).or_default() += transition.amount;
    }

    fn get_pending_transitions(&mut self) -> Vec<Transfer> {
        std::mem::take(&mut self.desk)
    }

    fn get_snapshot(&mut self) -> Option<Snapshot<Balances>> {
        None
    }

    fn create_snapshot(
        &mut self, last_included_index: usize, last_included_term: usize,
    ) -> Snapshot<Balances> {
        let data = Arc::new(self.balances.clone());
        Snapshot { last_included_index, last_included_term, data }
    }

    fn set_snapshot(&mut self, snapshot: Snapshot<Balances>) {
        self.balances = snapshot.data.as_ref().clone();
    }
}

struct Branch {
    id: usize,
    roads: HashMap<usize, Sender<Message<Transfer, Balances>>>,
    arrived: Vec<Message<Transfer, Balances>>,
    leader: Option<usize>,
    closed: bool,
}

impl Cluster<Transfer, Balances> for Branch {
    fn send_message(&mut self, to_id: usize, message: Message<Transfer, Balances>) {
        if let Some(road) = self.roads.get(&to_id) {
            let _ = road.send(message);
        }
    }

    fn receive_messages(&mut self) -> Vec<Message<Transfer, Balances>> {
        std::mem::take(&mut self.arrived)
    }

    fn halt(&self) -> bool {
        self.closed
    }

    fn register_leader(&mut self, leader_id: Option<usize>) {
        self.leader = leader_id;
    }
}

/// One replica with everything its user keeps of it.
struct Office {
    bank: Arc<Mutex<Bank>>,
    branch: Arc<Mutex<Branch>>,
    notify_transition: Sender<()>,
}

/// Passes on what comes over the road to one branch, one notification for each message.
fn deliver(
    road: Receiver<Message<Transfer, Balances>>, branch: Arc<Mutex<Branch>>, notify: Sender<()>,
) {
    for message in road {
        branch.lock().unwrap().arrived.push(message);
        if notify.send(()).is_err() {
            return;
        }
    }
}

fn open_offices(count: usize, snapshot_delta: usize) -> Vec<Office> {
    let (roads, ends): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded()).unzip();
    let open = |(id, end): (usize, _)| {
        let bank = Arc::new(Mutex::new(Bank::default()));
        let roads = roads.iter().cloned().enumerate().collect();
        let (arrived, leader, closed) = (Vec::new(), None, false);
        let branch = Arc::new(Mutex::new(Branch { id, roads, arrived, leader, closed }));
        let (notify_message, recv_message) = unbounded();
        let (notify_transition, recv_transition) = unbounded();
        let (cluster, state_machine) = (branch.clone(), bank.clone());
        thread::spawn(move || {
            let mut replica = Replica::new(
                id,
                (0..count).filter(|peer| *peer != id).collect(),
                cluster,
                state_machine,
                Transfer { number: 0, account: "nobody", amount: 0 },
                Duration::from_millis(50),
                (Duration::from_millis(250), Duration::from_millis(500)),
            )
            .with_snapshots(snapshot_delta);
            replica.start(recv_message, recv_transition)
        });
        let to = branch.clone();
        thread::spawn(move || deliver(end, to, notify_message));
        Office { bank, branch, notify_transition }
    };
    ends.into_iter().enumerate().map(open).collect()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes a transfer at whichever office leads, again if that one has refused.
fn transfer(offices: &[Office], transfer: Transfer) {
    let mut at: Option<(usize, usize)> = None;
    wait_for("a transfer", || {
        if let Some((id, refusals)) = at {
            let bank = offices[id].bank.lock().unwrap();
            if bank.applied.contains(&transfer.number) {
                return true;
            }
            if bank.refused.len() == refusals {
                return false;
            }
        }
        let leads = |office: &&Office| {
            let branch = office.branch.lock().unwrap();
            branch.leader == Some(branch.id)
        };
        if let Some(office) = offices.iter().find(leads) {
            let id = office.branch.lock().unwrap().id;
            let mut bank = office.bank.lock().unwrap();
            at = Some((id, bank.refused.len()));
            bank.desk.push(transfer.clone());
            office.notify_transition.send(()).unwrap();
        }
        false
    });
}

/// Runs the bank for a day. Returns what each office applied, and its balances.
fn run_bank(snapshot_delta: usize) {
    let offices = open_offices(3, snapshot_delta);
    let amounts = [120, -45, 7, 80, -162];
    for (number, amount) in (1..).zip(amounts) {
        transfer(&offices, Transfer { number, account: "Ada", amount });
        transfer(&offices, Transfer { number: number + 100, account: "Emmy", amount: -amount });
    }
    let in_balance = |office: &Office| {
        let bank = office.bank.lock().unwrap();
        bank.balances.get("Ada") == Some(&0) && bank.balances.get("Emmy") == Some(&0)
    };
    wait_for("every office to be in balance", || {
        offices.iter().all(|office| {
            in_balance(office) && office.bank.lock().unwrap().applied.last() == Some(&105)
        })
    });
    for office in &offices {
        office.branch.lock().unwrap().closed = true;
    }
    let applied: Vec<_> =
        offices.iter().map(|office| office.bank.lock().unwrap().applied.clone()).collect();
    let transfers: Vec<_> = applied[0].iter().copied().filter(|number| *number != 0).collect();
    assert_eq!(transfers, [1, 101, 2, 102, 3, 103, 4, 104, 5, 105]);
    assert_eq!(applied[0][0], 0, "a leadership begins with the no-op");
    for (office, of_this) in offices.iter().zip(&applied) {
        assert_eq!(*of_this, applied[0], "the order is the same everywhere");
        assert_eq!(office.bank.lock().unwrap().committed, *of_this);
    }
}

#[test]
fn a_program_for_little_raft_0_2_behaves() {
    run_bank(0);
}

#[test]
fn a_program_for_little_raft_0_2_behaves_with_a_snapshot_of_every_transition() {
    run_bank(1);
}
