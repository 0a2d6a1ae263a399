//! Runs the program with commands through a pipe, and reads what it answers.

use assert_cmd::cargo::cargo_bin_cmd;
use regex::Regex;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;
use tempfile::NamedTempFile;

/// No session takes nearly as long, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The answers of one run, in order.
struct Session {
    answers: std::vec::IntoIter<(String, String)>,
    well: bool,
}

fn run(arguments: &[&str], input: &str) -> (String, bool) {
    let mut command = cargo_bin_cmd!("playground");
    let output = command.args(arguments).write_stdin(input).timeout(DEADLINE).output().unwrap();
    let (out, err) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    assert!(output.status.code().is_some(), "still running after {DEADLINE:?}");
    assert_eq!(err, "", "nothing is logged unless it is asked for");
    let out = String::from_utf8(out).unwrap();
    assert!(!out.contains('\u{1b}'), "no colours but on a terminal: {out:?}");
    assert!(out.ends_with("all replicas are stopped\n"), "an unclean end: {out}");
    (out, output.status.success())
}

/// Types these lines.
fn play(arguments: &[&str], lines: &[&str]) -> Session {
    let (out, well) = run(arguments, &lines.join("\n"));
    println!("{out}"); // Shown if the test fails.
    let mut answers = Vec::new();
    for line in out.lines() {
        match (line.strip_prefix("> "), answers.last_mut()) {
            (Some(command), _) => answers.push((command.to_string(), String::new())),
            (None, Some((_, answer))) => writeln!(answer, "{line}").unwrap(),
            (None, None) => assert!(line.contains("in this process"), "{line}"),
        }
    }
    Session { answers: answers.into_iter(), well }
}

impl Session {
    /// The next answer, which must be to this command, and which must say this.
    fn expect(&mut self, command: &str, says: &str) -> String {
        let (typed, answer) = self.answers.next().expect("an answer to every command");
        assert_eq!(typed, command);
        assert!(answer.contains(says), "`{command}` must say {says:?} and says {answer:?}");
        answer
    }
}

/// The leader that an answer names.
fn leader(answer: &str) -> &str {
    let (_, rest) = answer.split_once("[leader ").expect("an answer names the leader");
    rest.split_once(',').expect("a term after the leader").0
}

fn file_of(lines: impl Iterator<Item = (String, String)>) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for (key, value) in lines {
        writeln!(file, "{key}\t{value}").unwrap();
    }
    file
}

fn numbered(count: usize) -> NamedTempFile {
    file_of((0..count).map(|number| (format!("key{number}"), format!("value of {number}"))))
}

#[test]
fn what_is_written_can_be_read_everywhere() {
    let lines = [
        "set fruit apple",
        "get fruit @1",
        "get fruit @2",
        "get fruit @3",
        "cas fruit apple pear",
        "cas fruit apple plum",
        "cas nut hazel brazil",
        "set fruit 'sour cherry'",
        "get fruit",
        "del fruit",
        "del fruit",
        "get fruit @leader",
    ];
    let mut session = play(&[], &lines);
    session.expect("set fruit apple", "fruit is apple; it is new  [leader ");
    for replica in 1..=3 {
        let says = format!("fruit is apple, at replica {replica}  [leader ");
        session.expect(&format!("get fruit @{replica}"), &says);
    }
    session.expect("cas fruit apple pear", "fruit is pear; it was apple");
    session.expect("cas fruit apple plum", "nothing was written: fruit is pear");
    session.expect("cas nut hazel brazil", "nothing was written: there is no nut");
    session.expect("set fruit 'sour cherry'", "fruit is sour cherry; it was pear");
    session.expect("get fruit", "fruit is sour cherry");
    session.expect("del fruit", "fruit is deleted; it was sour cherry");
    session.expect("del fruit", "there was no fruit");
    session.expect("get fruit @leader", "there is no fruit");
    assert!(session.well);
}

#[test]
fn a_killed_leader_is_replaced_and_comes_back() {
    let lines = [
        "transfer 1",
        "set a before",
        "kill 1",
        "set a after",
        "get a @1",
        "restart 1",
        "get a @1",
    ];
    let mut session = play(&[], &lines);
    session.expect("transfer 1", "replica 1 leads");
    session.expect("set a before", "[leader 1, ");
    let killed = session.expect("kill 1", "replica 1 led and is stopped; replica ");
    assert_ne!(leader(&killed), "1");
    session.expect("set a after", "a is after; it was before");
    session.expect("get a @1", "replica 1 does not run: restart 1");
    session.expect("restart 1", "replica 1 is back, and has caught up");
    session.expect("get a @1", "a is after, at replica 1");
}

#[test]
fn what_is_saved_survives_that_all_replicas_stop() {
    let lines = [
        "set a kept",
        "kill 1",
        "kill 2",
        "kill 3",
        "get a",
        "set a lost",
        "restart 3",
        "restart 1",
        "get a @3",
        "restart 2",
        "get a @2",
    ];
    let mut session = play(&["--time-limit", "3"], &lines);
    session.expect("set a kept", "a is kept");
    session.expect("kill 1", "is stopped");
    session.expect("kill 2", "[no leader: no majority of the voters 1 2 3 runs and is connected]");
    session.expect("kill 3", "replica 3 is stopped  [no leader");
    session.expect("get a", "nobody can tell");
    session.expect("set a lost", "nothing was written: no leader took it within 3s");
    session.expect("restart 3", "replica 3 is back, with what it had saved");
    session.expect("restart 1", "replica 1 is back, and has caught up");
    session.expect("get a @3", "a is kept, at replica 3");
    session.expect("restart 2", "caught up");
    session.expect("get a @2", "a is kept, at replica 2");
    assert!(!session.well, "a failed command must show in the exit code");
}

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_reads_nothing_stale() {
    let lines =
        ["transfer 1", "set a old", "cut 1", "set a new", "get a @1", "status", "heal", "get a @1"];
    let mut session = play(&["--time-limit", "3"], &lines);
    session.expect("transfer 1", "");
    session.expect("set a old", "[leader 1, ");
    let cut = session.expect("cut 1", "replica 1 is cut off from all others");
    assert_ne!(leader(&cut), "1");
    session.expect("set a new", "a is new; it was old");
    session.expect("get a @1", "nobody can tell");
    session.expect("status", "cut: 1-2 1-3");
    session.expect("heal", "all links are mended  [leader ");
    session.expect("get a @1", "a is new, at replica 1");
}

#[test]
fn a_leader_that_loses_one_link_of_three_stays() {
    let lines = ["transfer 1", "cut 1 2", "set a b", "cut 1 3", "heal", "get a @1"];
    let mut session = play(&[], &lines);
    session.expect("transfer 1", "");
    let cut = session.expect("cut 1 2", "the link between 1 and 2 is cut");
    assert_eq!(leader(&cut), "1");
    session.expect("set a b", "[leader 1, ");
    let cut = session.expect("cut 1 3", "the link between 1 and 3 is cut");
    assert_ne!(leader(&cut), "1");
    session.expect("heal", "[leader ");
    session.expect("get a @1", "a is b, at replica 1");
}

#[test]
fn without_a_majority_no_write_is_called_done() {
    let lines = ["set a old", "cut 1", "cut 2", "set a new", "cas a old newer", "heal", "get a"];
    let mut session = play(&["--time-limit", "1"], &lines);
    session.expect("set a old", "a is old");
    session.expect("cut 1", "[leader ");
    session.expect("cut 2", "[no leader: no majority of the voters 1 2 3 runs and is connected]");
    // The last leader may not know yet that it is cut off. Then it takes the write.
    let write = session.expect("set a new", "within 1s");
    assert!(write.contains("nothing was written") || write.contains("outcome unknown"), "{write}");
    session.expect("cas a old newer", "within 1s");
    session.expect("heal", "all links are mended");
    session.expect("get a", "a is ");
    assert!(!session.well);
}

#[test]
fn members_come_and_go() {
    let lines = [
        "transfer 2",
        "set a b",
        "members 1 2 3 4",
        "get a @4",
        "members 1 2 3 learners 4 5",
        "get a @5",
        "transfer 5",
        "members 2 3 4",
        "set a c",
        "get a @1",
        "members 1 2 3",
        "get a @1",
        "transfer 1",
    ];
    let mut session = play(&[], &lines);
    session.expect("transfer 2", "");
    session.expect("set a b", "");
    let four = session.expect("members 1 2 3 4", "replica 4 is started\nthe members are changed");
    assert!(four.contains("voters: 1 2 3 4\n[leader 2, "), "{four}");
    session.expect("get a @4", "a is b, at replica 4");
    session.expect("members 1 2 3 learners 4 5", "voters: 1 2 3; learners: 4 5\n");
    session.expect("get a @5", "a is b, at replica 5");
    session.expect("transfer 5", "replica 5 is no voter, so it cannot lead; the voters: 1 2 3");
    let three = session.expect("members 2 3 4", "replica 1 is no member any more and is stopped");
    assert!(three.contains("replica 5 is no member any more and is stopped"), "{three}");
    session.expect("set a c", "a is c");
    session.expect("get a @1", "replica 1 does not run");
    session.expect("members 1 2 3", "replica 1 is started");
    session.expect("get a @1", "a is c, at replica 1");
    session.expect("transfer 1", "replica 1 leads");
}

#[test]
fn a_leader_can_remove_itself() {
    let lines = ["transfer 1", "set a b", "members 2 3", "get a"];
    let mut session = play(&[], &lines);
    session.expect("transfer 1", "");
    session.expect("set a b", "");
    let members = session.expect("members 2 3", "replica 1 is no member any more and is stopped");
    assert_ne!(leader(&members), "1");
    session.expect("get a", "a is b");
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let mut session = play(&[], &["transfer 3", "transfer 2", "transfer 1", "transfer 9"]);
    for id in ["3", "2", "1"] {
        let answer = session.expect(&format!("transfer {id}"), &format!("replica {id} leads"));
        assert_eq!(leader(&answer), id);
    }
    session.expect("transfer 9", "replica 9 is no voter");
}

#[test]
fn leadership_stays_if_its_heir_does_not_run() {
    let mut session =
        play(&["--time-limit", "2"], &["transfer 1", "kill 3", "transfer 3", "set a b"]);
    session.expect("transfer 1", "");
    session.expect("kill 3", "replica 3 is stopped");
    session
        .expect("transfer 3", "was not handed over to replica 3, which does not run  [leader 1,");
    session.expect("set a b", "a is b");
}

#[test]
fn a_file_is_loaded_and_all_agree() {
    let file = numbered(20_000);
    let load = format!("load {}", file.path().display());
    let lines = ["kill 3", &load, "get key777", "restart 3", &load, "snapshot", "members 1 2 3 4"];
    let lines = lines.into_iter().chain(["get key19999 @4", "snapshot", "kill 4", "restart 4"]);
    let lines = lines.chain(["get key19999 @4"]).collect::<Vec<_>>();
    let mut session = play(&[], &lines);
    session.expect("kill 3", "");
    let loaded = session.expect(&load, "20000 keys written in ");
    assert!(loaded.contains("transitions per second"), "{loaded}");
    assert!(loaded.contains("\nall 2 agree\n"), "{loaded}");
    assert_eq!(loaded.matches("  20000  ").count(), 2, "{loaded}");
    session.expect("get key777", "key777 is value of 777");
    session.expect("restart 3", "caught up");
    let again = session.expect(&load, "\nall 3 agree\n");
    assert_eq!(again.matches("  20000  ").count(), 3, "{again}");
    let snapshots = session.expect("snapshot", " compacted");
    assert_eq!(snapshots.matches(", 20000 keys").count(), 3, "{snapshots}");
    session.expect("members 1 2 3 4", "replica 4 is started");
    session.expect("get key19999 @4", "key19999 is value of 19999, at replica 4");
    session.expect("snapshot", "\n4        installed at entry ");
    session.expect("kill 4", "");
    session.expect("restart 4", "caught up");
    session.expect("get key19999 @4", "key19999 is value of 19999, at replica 4");
    assert!(session.well);
}

#[test]
fn loading_from_the_command_line_ends_by_itself() {
    let file = numbered(5_000);
    let path = file.path().to_str().unwrap();
    let (out, well) = run(&["--replicas", "5", "load", path], "");
    assert!(well && out.contains("5000 keys written in ") && out.contains("all 5 agree"), "{out}");
    assert!(Regex::new(r"\[leader \d, term \d+\]").unwrap().is_match(&out), "{out}");
}

#[test]
fn a_wrong_file_is_not_loaded_in_part() {
    let mut file = numbered(10);
    writeln!(file, "no tab here").unwrap();
    let load = format!("load {}", file.path().display());
    let mut session = play(&[], &[&load, "get key0", "load no/such/file"]);
    session.expect(&load, ":11: nothing was loaded, this line is no KEY<TAB>VALUE");
    session.expect("get key0", "there is no key0");
    session.expect("load no/such/file", "no/such/file cannot be read");
    assert!(!session.well);
}

#[test]
fn wrong_commands_are_explained_and_the_rest_goes_on() {
    let lines = [
        "frobnicate",
        "sett a b",
        "set a",
        "get a @9",
        "kill 9",
        "restart 1",
        "cut 1 1",
        "kill x",
        "members",
        "set a 'b",
        "",
        "# a comment",
        "set a b",
        "quit",
        "set never reached",
    ];
    let mut session = play(&[], &lines);
    session.expect("frobnicate", "there is no command `frobnicate`; `help` lists them  [leader ");
    session.expect("sett a b", "did you mean `set`?");
    session.expect("set a", "`set` is written like this: set KEY VALUE");
    session.expect("get a @9", "there is no replica 9, only 1 2 3");
    session.expect("kill 9", "there is no replica 9, only 1 2 3");
    session.expect("restart 1", "replica 1 runs already");
    session.expect("cut 1 1", "`cut` is written like this: cut REPLICA [REPLICA]");
    session.expect("kill x", "`x` is no replica");
    session.expect("members", "`members` is written like this");
    session.expect("set a 'b", "a quote is not closed");
    session.expect("", "");
    session.expect("# a comment", "");
    session.expect("set a b", "a is b");
    session.expect("quit", "all replicas are stopped");
    assert!(session.answers.next().is_none());
    assert!(!session.well);
}

#[test]
fn wrong_arguments_are_explained() {
    for (arguments, says) in [
        (&["sett", "a", "b"][..], "did you mean `set`?"),
        (&["--file", "no/such/file"], "no/such/file cannot be read"),
        (&["--replicas", "0"], "0 is not in 1..=99"),
    ] {
        let output =
            cargo_bin_cmd!("playground").args(arguments).timeout(DEADLINE).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && err.contains(says), "{arguments:?}: {err}");
    }
}

#[test]
fn commands_may_come_from_a_file() {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "set a b\nget a\nquit").unwrap();
    let (out, well) = run(&["--replicas", "1", "--file", file.path().to_str().unwrap()], "set a c");
    assert!(well && out.contains("1 replica runs in this process"), "{out}");
    assert!(out.contains("a is b, at replica 1  [leader 1, term 1]"), "{out}");
}

/// The session in the README, but for its numbers, which are different each time.
#[test]
fn the_session_in_the_readme_is_true() {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```text\n$ cargo run --release\n").unwrap();
    let (session, _) = rest.split_once("```").unwrap();
    let lines = session.lines().filter_map(|line| line.strip_prefix("> "));
    let (out, well) = run(&[], &lines.collect::<Vec<_>>().join("\n"));
    let numbers = Regex::new(r"\b[0-9a-f]{8}\b|[0-9.]*[0-9]").unwrap();
    let spaces = Regex::new(" +").unwrap();
    let shape = |text: &str| {
        let text = numbers.replace_all(text, "#").into_owned();
        spaces.replace_all(&text, " ").into_owned()
    };
    assert_eq!(shape(session), shape(&out));
    assert!(well);
}
