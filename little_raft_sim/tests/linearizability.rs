//! The checker of histories, against every order there is.

use little_raft_sim::Random;
use little_raft_sim::linearizability::{Call, Model, Verdict, check};
use rand::{RngExt, SeedableRng};

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
