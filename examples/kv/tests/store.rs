//! The replicated state: what transactions do, that sessions do them once, and that all of it
//! depends on nothing but the commands.

use kv::command::*;
use kv::node::Change;
use kv::snapshots::Snapshots;
use kv::store::{MAX_SESSIONS, Store};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn apply(store: &mut Store, action: &Action) -> Outcome {
    store.apply(action, &mut Vec::new())
}

fn write(store: &mut Store, transaction: Transaction) -> Outcome {
    apply(store, &Action::Write { session: None, transaction })
}

fn write_in(
    store: &mut Store, client: ClientId, sequence: u64, transaction: Transaction,
) -> Outcome {
    let session = Some(Session { client, sequence });
    apply(store, &Action::Write { session, transaction })
}

fn open(store: &mut Store) -> ClientId {
    match apply(store, &Action::OpenSession) {
        Outcome::SessionOpened { client } => client,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_transaction_is_carried_out_as_a_whole_or_not_at_all() {
    let mut store = Store::default();
    let put = Operation::Put { key: "a".into(), value: "1".into() };
    let get = Operation::Get { key: "a".into() };
    let delete = Operation::Delete { key: "a".into() };
    let operations = vec![get.clone(), put.clone(), get, delete.clone(), delete, put];
    let done = write(&mut store, Transaction { conditions: vec![], operations });
    let found = Some(Versioned { value: "1".into(), version: 1 });
    let results = vec![
        OperationResult::Got { found: None },
        OperationResult::Put,
        OperationResult::Got { found },
        OperationResult::Deleted { existed: true },
        OperationResult::Deleted { existed: false },
        OperationResult::Put,
    ];
    assert_eq!(done, Outcome::Done { revision: 1, results });
    let both = Transaction::put("b", "2").only_if("a", Expected::Version(1));
    let both = both.only_if("b", Expected::Present);
    let failed = Outcome::ConditionFailed { key: "b".into(), actual: None };
    assert_eq!(write(&mut store, both), failed);
    assert_eq!((store.len(), store.revision()), (1, 1));
}

#[test]
fn conditions_hold_for_what_they_say() {
    let mut store = Store::default();
    write(&mut store, Transaction::put("other", "x"));
    write(&mut store, Transaction::put("key", "x"));
    let cases = [
        ("key", Expected::Absent, Some(Some(2))),
        ("key", Expected::Present, None),
        ("key", Expected::Version(2), None),
        ("key", Expected::Version(1), Some(Some(2))),
        ("none", Expected::Absent, None),
        ("none", Expected::Present, Some(None)),
        ("none", Expected::Version(1), Some(None)),
    ];
    for (key, expected, fails) in cases {
        let transaction = Transaction::delete("nothing").only_if(key, expected);
        let failed = match write(&mut store, transaction) {
            Outcome::ConditionFailed { key: failed, actual } if failed == key => Some(actual),
            Outcome::Done { revision: 2, .. } => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(failed, fails, "{key} {expected:?}");
    }
}

#[test]
fn what_changes_nothing_has_no_revision() {
    let (mut store, mut changes) = (Store::default(), Vec::new());
    let mut apply = |transaction| {
        let done = store.apply(&Action::Write { session: None, transaction }, &mut changes);
        (done, changes.split_off(0))
    };
    let (done, changes) = apply(Transaction::put("key", "x"));
    assert!(matches!(done, Outcome::Done { revision: 1, .. }));
    let value = Some("x".into());
    assert_eq!(changes, [Change { revision: 1, key: "key".into(), value }]);
    assert_eq!(apply(Transaction::delete("none")).1, []);
    let (done, changes) = apply(Transaction::delete("key"));
    assert!(matches!(done, Outcome::Done { revision: 2, .. }), "{done:?}");
    assert_eq!(changes, [Change { revision: 2, key: "key".into(), value: None }]);
}

#[test]
fn pages_follow_one_another() {
    let mut store = Store::default();
    for key in ["a", "b", "b/", "b/1", "b/2", "b/3", "b0", "c"] {
        write(&mut store, Transaction::put(key, "x"));
    }
    let list = |prefix: &str, limit| {
        let (mut keys, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = store.list(prefix, after.as_deref(), limit);
            keys.extend(page.entries.into_iter().map(|(key, _)| key));
            (after, pages) = (page.next, pages + 1);
            if after.is_none() {
                return (keys, pages);
            }
        }
    };
    for limit in 1..=9 {
        let (keys, pages) = list("b/", limit);
        assert_eq!(keys, ["b/", "b/1", "b/2", "b/3"]);
        assert_eq!(pages, 4_usize.div_ceil(limit));
        assert_eq!(list("", limit).0.len(), 8);
        assert_eq!(list("z", limit), (vec![], 1));
    }
    let outside: Vec<_> = store.list("b/", Some("a"), 9).entries;
    assert_eq!(outside.len(), 4, "what comes after a key before the prefix is the whole prefix");
}

#[test]
fn the_session_that_was_not_used_for_longest_is_forgotten() {
    let mut store = Store::default();
    let (first, second) = (open(&mut store), open(&mut store));
    for _ in 2..MAX_SESSIONS {
        open(&mut store);
    }
    assert_eq!(store.sessions(), MAX_SESSIONS);
    // Using a session keeps it, be it by a repeated request.
    write_in(&mut store, first, 1, Transaction::put("key", "1"));
    open(&mut store);
    write_in(&mut store, first, 1, Transaction::put("key", "2"));
    assert_eq!(store.sessions(), MAX_SESSIONS);
    let expired = write_in(&mut store, second, 1, Transaction::put("key", "3"));
    assert_eq!(expired, Outcome::SessionExpired);
    let next = write_in(&mut store, first, 2, Transaction::put("other", "4"));
    assert!(matches!(next, Outcome::Done { revision: 2, .. }), "{next:?}");
}

/// Few of everything, so that commands meet each other.
fn action() -> impl Strategy<Value = Action> {
    let key = || prop_oneof![Just("a"), Just("b"), Just("b/c"), Just("d")].prop_map(String::from);
    let expected = prop_oneof![
        Just(Expected::Absent),
        Just(Expected::Present),
        (0..30_u64).prop_map(Expected::Version),
    ];
    let condition = (key(), expected).prop_map(|(key, expected)| Condition { key, expected });
    let value = prop::collection::vec(any::<u8>(), 0..20);
    let operation = prop_oneof![
        3 => (key(), value).prop_map(|(key, value)| Operation::Put { key, value: value.into() }),
        1 => key().prop_map(|key| Operation::Delete { key }),
        1 => key().prop_map(|key| Operation::Get { key }),
    ];
    let conditions = prop::collection::vec(condition, 0..2);
    let transaction = (conditions, prop::collection::vec(operation, 0..4))
        .prop_map(|(conditions, operations)| Transaction { conditions, operations });
    // Sessions are named by the command that opened them.
    let session = prop::option::of((1..9_u64, 0..6_u64));
    let session = session.prop_map(|it| it.map(|(client, sequence)| Session { client, sequence }));
    prop_oneof![
        1 => Just(Action::NoOp),
        2 => Just(Action::OpenSession),
        9 => (session, transaction)
            .prop_map(|(session, transaction)| Action::Write { session, transaction }),
        1 => (1..4_usize, "[a-z]{1,3}").prop_map(|(id, name)| {
            let address = "127.0.0.1:1".to_string();
            Action::Introduce {
                nodes: vec![Address { id, name, raft: address.clone(), http: address }],
            }
        }),
    ]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    prop::collection::vec(action(), 0..80)
}

proptest! {
    /// What a log holds may be applied by anybody, from the beginning or from a snapshot of any
    /// place, which may have been begun at any earlier place.
    #[test]
    fn the_same_commands_lead_to_the_same_state_with_and_without_snapshots(
        actions in actions(), cuts in any::<[prop::sample::Index; 2]>(),
    ) {
        let mut cuts = cuts.map(|cut| cut.index(actions.len() + 1));
        cuts.sort_unstable();
        let [begun, taken] = cuts;
        let directory = tempfile::TempDir::new().unwrap();
        let snapshots = Snapshots::open(directory.path()).unwrap();
        let (mut store, mut draft, mut handle) = (Store::default(), None, None);
        let mut outcomes = Vec::new();
        for place in 0..=actions.len() {
            if place == begun {
                draft = Some(snapshots.draft(&store).unwrap());
            }
            if place == taken {
                handle = Some(snapshots.write(&store, draft.take(), (place, 1)));
            }
            outcomes.extend(actions.get(place).map(|action| apply(&mut store, action)));
        }
        let handle = handle.unwrap();
        prop_assert!(handle.failure().is_none());
        let mut restored = snapshots.load(&handle).unwrap();
        let later: Vec<_> = actions[taken..].iter().map(|it| apply(&mut restored, it)).collect();
        prop_assert_eq!(&later[..], &outcomes[taken..]);
        prop_assert_eq!(restored, store);
    }

    /// Repeating requests of sessions, however late, changes nothing but the memory of when the
    /// session was used.
    #[test]
    fn a_request_of_a_session_is_carried_out_once(
        actions in actions(), repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let repeats: Vec<_> = repeats.iter().map(|it| it.index(actions.len() + 1)).collect();
        let (mut once, mut often) = (Store::default(), Store::default());
        let mut opened = BTreeMap::new();
        let mut written: Vec<Action> = Vec::new();
        for (place, action) in actions.iter().enumerate() {
            let expected = apply(&mut once, action);
            // Sessions are named by their place, which repetition shifts.
            let action = renamed(action, &opened);
            let outcome = apply(&mut often, &action);
            match (&expected, &outcome) {
                (Outcome::SessionOpened { client }, Outcome::SessionOpened { client: other }) => {
                    opened.insert(*client, *other);
                }
                _ => prop_assert_eq!(&expected, &outcome),
            }
            if matches!(action, Action::Write { session: Some(_), .. }) {
                written.push(action);
            }
            for _ in repeats.iter().filter(|it| **it == place) {
                for action in &written {
                    let before = (often.list("", None, 99), often.revision());
                    apply(&mut often, action);
                    prop_assert_eq!(before, (often.list("", None, 99), often.revision()));
                }
            }
        }
        prop_assert_eq!(once.list("", None, 99), often.list("", None, 99));
    }
}

fn renamed(action: &Action, names: &BTreeMap<ClientId, ClientId>) -> Action {
    let mut action = action.clone();
    if let Action::Write { session: Some(session), .. } = &mut action {
        // A name that nobody has stays one that nobody has.
        let unknown = 1_000_000 + session.client;
        session.client = names.get(&session.client).copied().unwrap_or(unknown);
    }
    action
}

#[test]
fn a_snapshot_that_is_damaged_anywhere_is_refused() {
    let directory = tempfile::TempDir::new().unwrap();
    let snapshots = Snapshots::open(directory.path()).unwrap();
    let mut store = Store::default();
    open(&mut store);
    write(&mut store, Transaction::put("key", "value"));
    let handle = snapshots.write(&store, None, (1, 1));
    let (path, intact) = (snapshots.path(&handle), std::fs::read(snapshots.path(&handle)).unwrap());
    assert_eq!(snapshots.load(&handle).unwrap(), store);
    for bit in 0..intact.len() * 8 {
        let mut damaged = intact.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, damaged).unwrap();
        assert!(snapshots.load(&handle).is_err(), "bit {bit}");
    }
    for length in 0..intact.len() {
        std::fs::write(&path, &intact[..length]).unwrap();
        assert!(snapshots.load(&handle).is_err(), "{length} bytes");
    }
    let longer = [&intact[..], &[0]].concat();
    std::fs::write(&path, longer).unwrap();
    assert!(snapshots.load(&handle).is_err());
    std::fs::remove_file(&path).unwrap();
    let error = snapshots.load(&handle).unwrap_err().to_string();
    assert!(error.contains("remove this node from the members"), "{error}");
}

#[test]
fn files_stay_as_long_as_somebody_needs_them() {
    let directory = tempfile::TempDir::new().unwrap();
    let snapshots = Snapshots::open(directory.path()).unwrap();
    let count = || std::fs::read_dir(directory.path()).unwrap().count();
    let mut store = Store::default();
    let first = snapshots.write(&store, None, (1, 1));
    write(&mut store, Transaction::put("key", "value"));
    let second = snapshots.write(&store, None, (2, 1));
    snapshots.sweep(Some(&second)).unwrap();
    assert_eq!(count(), 2, "somebody still holds the first");
    drop(first);
    snapshots.sweep(Some(&second)).unwrap();
    assert_eq!(count(), 1);
    // After a restart nobody holds anything, and what was left unfinished is nobody's.
    let draft = snapshots.draft(&store).unwrap();
    let snapshots = Snapshots::open(directory.path()).unwrap();
    drop(draft);
    snapshots.sweep(Some(&second)).unwrap();
    assert_eq!(snapshots.load(&second).unwrap(), store);
    assert_eq!(count(), 1);
}

#[test]
fn a_snapshot_that_cannot_be_written_says_so() {
    let directory = tempfile::TempDir::new().unwrap();
    let snapshots = Snapshots::open(&directory.path().join("gone")).unwrap();
    std::fs::remove_dir(directory.path().join("gone")).unwrap();
    let handle = snapshots.write(&Store::default(), None, (1, 1));
    let failure = handle.failure().unwrap();
    assert_eq!(failure.kind(), std::io::ErrorKind::NotFound);
    assert!(failure.to_string().contains("cannot write a snapshot"), "{failure}");
}
