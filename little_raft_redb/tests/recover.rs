//! The command, and going on after the loss of a quorum.

mod common;

use common::*;
use little_raft::{Change, Config, Raft, Storage};
use little_raft_redb::{RedbStorage, inspect, recover};
use std::path::Path;
use std::process::{Command as Process, Output};
use std::time::Duration;

impl little_raft::StateMachineTransition for Command {
    type TransitionID = u64;

    fn get_id(&self) -> u64 {
        self.number
    }
}

fn command(arguments: &[&str]) -> Output {
    let mut process = Process::new(env!("CARGO_BIN_EXE_little_raft_redb"));
    process.args(arguments).output().expect("ran")
}

/// A replica that starts from what is saved.
fn raft(id: usize, directory: &Path) -> Raft<Command, Vec<u8>> {
    let config = Config {
        id,
        peer_ids: vec![7, 8],
        heartbeat_timeout: Duration::from_millis(10),
        election_timeout_range: (Duration::from_millis(50), Duration::from_millis(100)),
        snapshot_delta: 0,
        max_clock_drift: None,
        joining: false,
        seed: 1,
    };
    let saved = load(directory).expect("loaded");
    Raft::new(config, Command::new(0, 0), saved, Duration::ZERO).expect("a state of a replica")
}

#[test]
fn inspecting_says_what_is_there_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = RedbStorage::options().replica_id(2).cluster_id("orders");
    furnish(&mut options.open(directory.path()).expect("opened"));
    let files = || {
        ["replica.redb", "acknowledged"]
            .map(|file| std::fs::read(directory.path().join(file)).expect("read"))
    };
    let before = files();
    let output = command(&["inspect", directory.path().to_str().expect("readable")]);
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = [
        "replica        2\n",
        "cluster        orders\n",
        "term           4\n",
        "vote           1\n",
        "configuration  voters {1, 2} since entry 201\n",
        "log            31 to 236 of term 4\n",
        "snapshot       up to 40 of term 1, 70003 bytes\n",
        "saves          15, 15 known to be acknowledged\n",
        "checksums      all verified",
    ];
    for line in expected {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(output.status.success() && before == files());
}

#[test]
fn inspecting_a_crashed_replica_changes_nothing() {
    let (directory, copied) =
        (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    furnish(&mut storage);
    copy(directory.path(), copied.path());
    let files = || {
        ["replica.redb", "acknowledged"]
            .map(|file| std::fs::read(copied.path().join(file)).expect("read"))
    };
    let before = files();
    let inspection = inspect(copied.path()).expect("inspected");
    assert!(!inspection.closed && !inspection.unfinished && inspection.saves == 15);
    assert!(before == files());
}

#[test]
fn a_survivor_goes_on_with_the_voters_it_is_given() {
    let directory = tempfile::tempdir().expect("a directory");
    let saved =
        furnish(&mut RedbStorage::options().replica_id(1).open(directory.path()).expect("opened"));
    let mut alone = raft(1, directory.path());
    alone.outputs(Duration::from_secs(1));
    assert_eq!(alone.me.term, 4, "without a quorum it only asks whether it could win");

    let output =
        command(&["recover", directory.path().to_str().expect("readable"), "--voters", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("configuration  voters {1} since entry 201\n"), "{text}");
    assert!(text.contains("recovered      from voters {1, 2} to voters {1}, save 16"), "{text}");

    let mut survivor = raft(1, directory.path());
    assert_eq!(*survivor.me.membership, membership(&[1]));
    let outputs = survivor.outputs(Duration::from_secs(1));
    assert_eq!(survivor.me.role, little_raft::Role::Leader);
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    storage.save(outputs.change.expect("a term, a vote and a no-op")).expect("saved");
    survivor.saved();
    assert_eq!(survivor.me.commit, 237, "everything it had and its no-op");
    // Nothing else has changed: same entries, same terms, same snapshot.
    let loaded: Saved = storage.load().expect("loaded");
    let ids =
        |saved: &Saved| flat(saved.clone()).runs.iter().map(|run| run.last()).collect::<Vec<_>>();
    assert_eq!(ids(&loaded)[..206], ids(&saved)[..]);
    assert_eq!((loaded.snapshot, loaded.compacted), (saved.snapshot, saved.compacted));
}

#[test]
fn a_replica_that_never_saved_can_be_given_a_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(RedbStorage::open(directory.path()).expect("opened"));
    let recovery = recover(directory.path(), [1, 2], false).expect("recovered");
    assert_eq!((recovery.before, recovery.after), (None, membership(&[1, 2])));
    assert_eq!(*raft(1, directory.path()).me.membership, membership(&[1, 2]));
}

#[test]
fn nonsense_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    furnish(&mut RedbStorage::options().replica_id(1).open(directory.path()).expect("opened"));
    let error = recover(directory.path(), [], false).expect_err("no voter");
    assert!(error.to_string().contains("at least one voter"), "{error}");
    let error = recover(directory.path(), [2, 3], false).expect_err("not itself");
    assert!(error.to_string().contains("the directory of replica 1"), "{error}");
    assert!(inspect(directory.path()).expect("inspected").recoveries.is_empty());
    let path = directory.path().to_str().expect("readable");
    for wrong in
        [&["recover", path, "--voters", "1;2"][..], &["recover", path], &["look", path], &[]]
    {
        let output = command(wrong);
        assert!(!output.status.success() && !output.stderr.is_empty(), "{wrong:?}");
    }
    assert!(recover(directory.path().join("nothing"), [1], false).is_err());
}

#[test]
fn a_loss_is_accepted_only_if_asked_for() {
    let (directory, older) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    furnish(&mut storage);
    copy(directory.path(), older.path());
    storage.save(Change { compacted: id(1, 30), ..appending(9, vec![]) }).expect("saved");
    std::fs::copy(directory.path().join("acknowledged"), older.path().join("acknowledged"))
        .expect("copied");
    assert!(load(older.path()).is_err());
    assert!(recover(older.path(), [1], false).is_err());
    assert!(recover(older.path(), [1], true).expect("recovered").accepted_loss);
    assert_eq!(load(older.path()).expect("loaded").term, 4);
    let text = inspect(older.path()).expect("inspected").to_string();
    assert!(text.contains("accepting a loss"), "{text}");

    std::fs::write(older.path().join("acknowledged"), "no marker").expect("written");
    assert!(recover(older.path(), [1], false).is_err());
    recover(older.path(), [1], true).expect("recovered");
    std::fs::remove_file(older.path().join("acknowledged")).expect("removed");
    assert!(load(older.path()).is_err());
}
