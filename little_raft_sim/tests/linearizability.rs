//! The checker of histories, against every order there is and against another checker.

use little_raft_sim::linearizability::{Call, Model, Verdict, check};
use little_raft_sim::{Access, Random};
use rand::{RngExt, SeedableRng};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

#[derive(Clone, Copy, Debug)]
enum Operation {
    Write(u8),
    Read(u8),
    CompareAndSwap(u8, u8, bool),
}
use Operation::{CompareAndSwap, Read, Write};

struct Register;

impl Model for Register {
    type State = u8;
    type Operation = Operation;

    fn initial(&self) -> u8 {
        0
    }

    fn apply(&self, state: &u8, operation: &Operation) -> Option<u8> {
        match *operation {
            Write(value) => Some(value),
            Read(value) => (value == *state).then_some(value),
            CompareAndSwap(old, new, true) => (old == *state).then_some(new),
            CompareAndSwap(old, _, false) => (old != *state).then_some(*state),
        }
    }

    fn only_reads(&self, operation: &Operation) -> bool {
        matches!(operation, Read(_) | CompareAndSwap(_, _, false))
    }
}

type History = Vec<Call<Operation>>;

/// Tries every order, which is slow and plainly right.
fn explained(history: &History, placed: u32, state: u8) -> bool {
    let open = |place: &usize| placed & 1 << place == 0;
    let calls = || (0..history.len()).filter(open);
    let first_return = calls().filter_map(|place| history[place].returned).min();
    calls().all(|place| history[place].returned.is_none())
        || calls().any(|place| {
            let call = &history[place];
            first_return.is_none_or(|at| call.invoked < at)
                && Register
                    .apply(&state, &call.operation)
                    .is_some_and(|state| explained(history, placed | 1 << place, state))
        })
}

fn random_history(random: &mut Random) -> History {
    let calls = random.random_range(1..9);
    let mut call = |number: u64| {
        let mut value = || random.random_range(0..3);
        let (old, new) = (value(), value());
        let operation = match random.random_range(0..4) {
            0 => Write(new),
            1 => CompareAndSwap(old, new, random.random()),
            _ => Read(new),
        };
        let invoked = random.random_range(0..20) * 100 + 2 * number;
        let returned =
            random.random_ratio(5, 6).then(|| invoked + 1 + 100 * random.random_range(0..8));
        Call { operation, invoked, returned }
    };
    (0..calls).map(&mut call).collect()
}

#[test]
fn agrees_with_trying_every_order() {
    let mut random = Random::seed_from_u64(7);
    let mut counts = [0; 2];
    for _ in 0..20_000 {
        let history = random_history(&mut random);
        let expected = explained(&history, 0, 0);
        let verdict = check(&Register, &history, 1_000_000);
        let found = verdict == Verdict::Linearizable;
        assert_ne!(verdict, Verdict::Undecided);
        assert_eq!(found, expected, "{history:?}");
        counts[usize::from(found)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 1_000), "both kinds are there: {counts:?}");
}

#[test]
fn a_read_of_the_past_is_found() {
    let call = |operation, invoked, returned| Call { operation, invoked, returned: Some(returned) };
    let mut history = vec![call(Write(1), 0, 1), call(Write(2), 2, 3), call(Read(1), 4, 5)];
    assert_eq!(check(&Register, &history, 1_000), Verdict::NotLinearizable);
    history[2].invoked = 2;
    assert_eq!(check(&Register, &history, 1_000), Verdict::Linearizable);
    assert_eq!(check(&Register, &history, 1), Verdict::Undecided);
}

/// The same register in the words of another checker.
#[derive(Clone, Debug)]
struct Reference(u64);

#[derive(Clone, Debug)]
enum Asked {
    Write(u64),
    Read,
    CompareAndSwap(u64, u64),
    Swap(u64),
}

#[derive(Clone, Debug, PartialEq)]
enum Told {
    Written,
    Value(u64),
    Swapped(bool),
}

impl SequentialSpec for Reference {
    type Op = Asked;
    type Ret = Told;

    fn invoke(&mut self, asked: &Asked) -> Told {
        match *asked {
            Asked::Read => Told::Value(self.0),
            Asked::Swap(new) => Told::Value(std::mem::replace(&mut self.0, new)),
            Asked::Write(new) => {
                self.0 = new;
                Told::Written
            }
            Asked::CompareAndSwap(old, new) => {
                let swapped = self.0 == old;
                self.0 = if swapped { new } else { self.0 };
                Told::Swapped(swapped)
            }
        }
    }
}

/// What the other checker says of a history.
fn other_accepts<O: Copy>(history: &[Call<O>], says: impl Fn(O) -> (Asked, Told)) -> bool {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (number, call) in history.iter().enumerate() {
        events.push((call.invoked, false, number));
        events.extend(call.returned.map(|at| (at, true, number)));
    }
    events.sort_unstable();
    let mut tester = LinearizabilityTester::new(Reference(0));
    for (_, returns, number) in events {
        let (asked, told) = says(history[number].operation);
        // Every call has a thread of its own, since calls overlap as they like.
        let valid = match returns {
            true => tester.on_return(number, told).is_ok(),
            false => tester.on_invoke(number, asked).is_ok(),
        };
        assert!(valid, "the history is well-formed");
    }
    tester.is_consistent()
}

#[test]
fn agrees_with_another_checker() {
    let mut random = Random::seed_from_u64(11);
    let mut counts = [0; 2];
    for _ in 0..10_000 {
        let mut history = random_history(&mut random);
        for call in history.iter_mut().filter(|call| call.returned.is_none()) {
            // The other checker lets a call that has not returned have any result.
            if let CompareAndSwap(old, new, _) = call.operation {
                call.operation = CompareAndSwap(old, new, true);
            }
        }
        let says = |operation| match operation {
            Write(value) => (Asked::Write(value.into()), Told::Written),
            Read(value) => (Asked::Read, Told::Value(value.into())),
            CompareAndSwap(old, new, swapped) => {
                (Asked::CompareAndSwap(old.into(), new.into()), Told::Swapped(swapped))
            }
        };
        let expected = other_accepts(&history, says);
        let found = check(&Register, &history, 1_000_000);
        let verdict = if expected { Verdict::Linearizable } else { Verdict::NotLinearizable };
        assert_eq!(found, verdict, "{history:?}");
        counts[usize::from(expected)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 1_000), "both kinds are there: {counts:?}");
}

/// A history of swaps and reads such as the simulator writes down: it really happened in some order,
/// but for a mistake that is put in now and then.
fn random_accesses(random: &mut Random) -> Vec<Call<Access>> {
    let calls = random.random_range(2..8);
    let mut moments: Vec<(u64, u64, u64)> = Vec::new();
    for number in 0..calls {
        let mut times = [0; 3].map(|_: u64| random.random_range(0..24) * 100 + number);
        times.sort_unstable();
        // Invoked, in effect, returned, and never two of them at once.
        moments.push((3 * times[0], 3 * times[1] + 1, 3 * times[2] + 2));
    }
    moments.sort_unstable_by_key(|(_, effect, _)| *effect);
    let mut value = 0;
    let mut history = Vec::new();
    for (number, (invoked, _, returned)) in (1..).zip(moments) {
        let (operation, returned) = match random.random_range(0..4) {
            0 => (Access::Seen(number), None),
            1 => (Access::Write(number, value), Some(returned)),
            _ => (Access::Read(value), Some(returned)),
        };
        value = if matches!(operation, Access::Read(_)) { value } else { number };
        history.push(Call { operation, invoked, returned });
    }
    if random.random_ratio(1, 2) {
        let place = random.random_range(0..history.len());
        let other = random.random_range(0..=calls);
        history[place].operation = match history[place].operation {
            Access::Read(_) => Access::Read(other),
            Access::Write(new, _) => Access::Write(new, other),
            seen => seen,
        };
    }
    let seen: Vec<u64> = history.iter().filter_map(|call| sees(call.operation)).collect();
    history.retain(|call| !matches!(call.operation, Access::Seen(value) if !seen.contains(&value)));
    history
}

fn sees(access: Access) -> Option<u64> {
    match access {
        Access::Write(_, value) | Access::Read(value) => Some(value),
        Access::Seen(_) => None,
    }
}

#[test]
fn agrees_with_another_checker_on_what_the_simulator_writes_down() {
    let mut random = Random::seed_from_u64(12);
    let mut counts = [0; 2];
    for _ in 0..10_000 {
        let history = random_accesses(&mut random);
        let says = |access| match access {
            Access::Write(new, old) => (Asked::Swap(new), Told::Value(old)),
            Access::Seen(new) => (Asked::Swap(new), Told::Written),
            Access::Read(value) => (Asked::Read, Told::Value(value)),
        };
        let expected = other_accepts(&history, says);
        let found = check(&little_raft_sim::Register, &history, 1_000_000);
        let verdict = if expected { Verdict::Linearizable } else { Verdict::NotLinearizable };
        assert_eq!(found, verdict, "{history:?}");
        counts[usize::from(expected)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 1_000), "both kinds are there: {counts:?}");
}
