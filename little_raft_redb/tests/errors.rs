//! What is refused, and what the refusal says.

mod common;

use common::*;
use little_raft::{Change, Storage};
use little_raft_redb::{RedbStorage, inspect};
use std::fs;
use std::io::{ErrorKind, Result};
use std::path::Path;
use std::process::Command as Process;

fn refusal(result: Result<RedbStorage>) -> (ErrorKind, String) {
    let error = result.err().expect("refused");
    (error.kind(), error.to_string())
}

#[test]
fn a_directory_is_open_once_at_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = RedbStorage::open(directory.path()).expect("opened");
    let (kind, text) = refusal(RedbStorage::open(directory.path()));
    assert_eq!(kind, ErrorKind::ResourceBusy, "{text}");
    assert!(text.contains("stop it first"), "{text}");
    assert_eq!(inspect(directory.path()).expect_err("refused").kind(), ErrorKind::ResourceBusy);
    let process = Process::new(env!("CARGO_BIN_EXE_little_raft_redb"))
        .args(["recover", directory.path().to_str().expect("readable"), "--voters", "1"])
        .output()
        .expect("ran");
    assert!(!process.status.success());
    assert!(String::from_utf8_lossy(&process.stderr).contains("stop it first"));
    drop(storage);
    assert!(RedbStorage::open(directory.path()).is_ok());
}

#[test]
fn a_directory_of_another_replica_or_cluster_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    drop(RedbStorage::open(path).expect("nobody's yet"));
    drop(RedbStorage::options().replica_id(1).open(path).expect("claimed"));
    let (kind, text) = refusal(RedbStorage::options().replica_id(2).open(path));
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(text.contains("belongs to replica 1, not to replica 2"), "{text}");
    drop(RedbStorage::options().replica_id(1).cluster_id("orders").open(path).expect("claimed"));
    let (kind, text) = refusal(RedbStorage::options().cluster_id("invoices").open(path));
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(text.contains("belongs to cluster \"orders\""), "{text}");
    drop(RedbStorage::open(path).expect("no conditions"));
    let inspection = inspect(path).expect("inspected");
    assert_eq!((inspection.replica_id, inspection.cluster_id), (Some(1), Some("orders".into())));
}

#[test]
fn a_directory_that_should_be_there_is_not_made_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("not").join("mounted");
    let (kind, text) = refusal(RedbStorage::options().existing().open(&path));
    assert_eq!(kind, ErrorKind::NotFound, "{text}");
    assert!(!path.exists());
    fs::create_dir_all(&path).expect("created");
    assert_eq!(refusal(RedbStorage::options().existing().open(&path)).0, ErrorKind::NotFound);
    assert_eq!(fs::read_dir(&path).expect("there").count(), 0);
    drop(RedbStorage::open(&path).expect("created"));
    drop(RedbStorage::options().existing().open(&path).expect("there"));
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    furnish(&mut RedbStorage::open(directory.path()).expect("opened"));
    let marker = directory.path().join("acknowledged");
    let mut bytes = fs::read(&marker).expect("read");
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let end = bytes.len() - 4;
    let sum = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    fs::write(&marker, bytes).expect("written");
    let (kind, text) = refusal(RedbStorage::open(directory.path()));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("format 2") && text.contains("newer version"), "{text}");
}

#[test]
fn entries_of_another_type_are_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    furnish(&mut RedbStorage::open(directory.path()).expect("opened"));
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    let loaded: Result<Change<[u8; 3], String>> = storage.load();
    let error = loaded.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("is undamaged but not of this program's types"), "{error}");
    drop(storage);
    assert!(load(directory.path()).is_ok(), "nothing was changed");
}

/// Not a test: saves in the directory it is told until that fails, and says whether all is well.
#[test]
#[ignore = "runs in a process of its own"]
fn save_until_it_fails() {
    let Ok(directory) = std::env::var("LITTLE_RAFT_REDB_DIRECTORY") else { return };
    let mut storage = RedbStorage::open(&directory).expect("opened");
    for save in 0.. {
        let change = appending(1, vec![run(1 + save * 20, 1, 20, 1000)]);
        if let Err(error) = storage.save(change.clone()) {
            let again = storage.save(change).expect_err("dead");
            assert!(again.to_string().contains("has failed before"), "{again}");
            fs::write(Path::new(&directory).join("saves"), save.to_string()).unwrap_or_default();
            println!("failed after {save} saves: {error}");
            return;
        }
    }
}

/// Runs that in a shell after something that limits it; returns the number of saves and the error.
fn fail(directory: &Path, limit: &str) -> (usize, String) {
    let program = std::env::current_exe().expect("this program");
    let output = Process::new("sh")
        .args([
            "-c",
            &format!("{limit}; exec \"$0\" --exact save_until_it_fails --ignored --nocapture"),
        ])
        .arg(program)
        .env("LITTLE_RAFT_REDB_DIRECTORY", directory)
        .output()
        .expect("ran");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, result) = text.split_once("failed after ").unwrap_or_else(|| panic!("{output:?}"));
    let (saves, error) = result.split_once(" saves: ").expect("a number");
    (saves.parse().expect("a number"), error.lines().next().expect("an error").to_string())
}

fn all_saves_are_there(directory: &Path, saves: usize) {
    let loaded = load(directory).expect("whatever was acknowledged is there");
    let entries = loaded.runs.last().map_or(0, |run| run.last().index);
    assert!(entries == saves * 20 || entries == saves * 20 + 20, "{entries}, {saves} saves");
}

#[cfg(unix)]
#[test]
fn a_failed_write_is_final_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    // Writes beyond 2 MiB fail instead of ending the process.
    let (saves, error) = fail(directory.path(), "trap '' XFSZ; ulimit -f 4096");
    assert!(saves > 5, "{error}");
    assert!(error.contains("replica.redb") && error.contains("Check the disk"), "{error}");
    all_saves_are_there(directory.path(), saves);
}

/// Not a test: opens the directory it is told, and says how that went.
#[test]
#[ignore = "runs in a process of its own"]
fn open_and_say() {
    let Ok(directory) = std::env::var("LITTLE_RAFT_REDB_DIRECTORY") else { return };
    match load(Path::new(&directory)) {
        Ok(_) => println!("opened"),
        Err(error) => println!("refused: {:?}: {error}", error.kind()),
    }
}

/// Says that something could not be tried, to whoever runs the tests, whether they pass or not.
#[cfg(unix)]
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// What an ordinary user is told about a directory. Root, whom permissions do not stop, has
/// somebody else try it; nothing if it cannot.
#[cfg(unix)]
fn told_to_an_ordinary_user(directory: &Path, may_do_everything: bool) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let program = std::env::current_exe().expect("this program");
    let anybody = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    };
    let copies = tempfile::tempdir().expect("a directory");
    let mut process = Process::new(&program);
    if may_do_everything {
        // The program may lie where nobody else can read it.
        let copy = copies.path().join("program");
        fs::copy(program, &copy).expect("copied");
        [copies.path(), &copy].into_iter().for_each(anybody);
        process = Process::new("setpriv");
        process.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    }
    process.args(["--exact", "open_and_say", "--ignored", "--nocapture"]);
    let output = process.env("LITTLE_RAFT_REDB_DIRECTORY", directory).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text.contains("opened") || text.contains("refused")).then_some(text)
}

#[cfg(unix)]
#[test]
fn files_without_permissions_are_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    };
    furnish(&mut RedbStorage::open(path).expect("opened"));
    set(path, 0o777);
    let mut all = false;
    for (denied, other) in [("replica.redb", "acknowledged"), ("acknowledged", "replica.redb")] {
        set(&path.join(denied), 0o444);
        set(&path.join(other), 0o666);
        all = fs::OpenOptions::new().write(true).open(path.join(denied)).is_ok();
        let Some(told) = told_to_an_ordinary_user(path, all) else {
            return skipped("permissions mean nothing to this user, and setpriv is not there");
        };
        assert!(told.contains("refused: PermissionDenied"), "{told}");
        assert!(told.contains(denied) && told.contains("the right to read and write"), "{told}");
    }
    set(&path.join("acknowledged"), 0o666);
    let told = told_to_an_ordinary_user(path, all).expect("it could be tried before");
    assert!(told.contains("opened"), "it is the permissions that were missing: {told}");
}

/// A disk of two megabytes, until it is dropped.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut process = Process::new("mount");
        process.args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(directory.path());
        let is_there = process.output().is_ok_and(|output| output.status.success());
        is_there.then(|| SmallDisk(directory))
    }

    fn grow(&self) {
        let mut process = Process::new("mount");
        process.args(["-o", "remount,size=64m"]).arg(self.0.path());
        assert!(process.status().expect("ran").success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Process::new("umount").arg(self.0.path()).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_final_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        return skipped("this user may not mount a small disk");
    };
    let path = disk.0.path();
    let (saves, error) = fail(path, "true");
    assert!(saves > 5 && error.contains("Free some space"), "{error}");
    // Opening may need some space itself; either it says so or everything is there.
    match load(path) {
        Ok(_) => all_saves_are_there(path, saves),
        Err(error) => assert!(error.to_string().contains("Free some space"), "{error}"),
    }
    disk.grow();
    all_saves_are_there(path, saves);
}
