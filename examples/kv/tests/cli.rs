//! The program as users run it: what it prints, and how it ends.

mod common;
mod serving;

use common::{PATIENCE, free_port};
use serde_json::{Value, json};
use serving::Serving;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a run of the program has come to.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn program(nodes: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv"));
    command.env("KV_NODES", nodes).env("KV_TIMEOUT", "60");
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(nodes: &str, arguments: &[&str]) -> Ran {
    run_with(nodes, arguments, b"")
}

fn run_with(nodes: &str, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = program(nodes);
    let piped = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not want it need not read it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("an exit code");
    Ran { code, out: text(output.stdout), err: text(output.stderr) }
}

impl Ran {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    #[track_caller]
    fn fails(self, code: i32, reason: &str) -> String {
        assert!(self.code == code && self.err.contains(reason), "{code}, {reason}: {self:?}");
        self.err
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

/// A cluster whose nodes run in this process, and where it is.
fn serving(nodes: usize) -> (tokio::runtime::Runtime, Serving, String) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let serving = runtime.block_on(Serving::start(nodes, |_| {}));
    let addresses = serving.addresses();
    (runtime, serving, addresses)
}

#[test]
fn keys_are_put_read_swapped_and_deleted() {
    let (_runtime, _serving, nodes) = serving(1);
    let kv = |arguments: &[&str]| run(&nodes, arguments);
    assert_eq!(kv(&["put", "fruit", "apple"]).ok(), "fruit is now at version 1\n");
    assert_eq!(kv(&["get", "fruit"]).ok(), "apple");
    kv(&["get", "nothing"]).fails(1, "no key \"nothing\"");
    assert_eq!(kv(&["cas", "fruit", "pear", "--version", "1"]).ok(), "fruit is now at version 2\n");
    kv(&["cas", "fruit", "plum", "--version", "1"]).fails(1, "has version 2");
    kv(&["cas", "fruit", "plum", "--absent"]).fails(1, "has version 2");
    kv(&["cas", "other", "plum", "--absent"]).ok();
    kv(&["del", "fruit", "--version", "1"]).fails(1, "has version 2");
    assert_eq!(kv(&["del", "fruit"]).ok(), "fruit is gone as of revision 4\n");
    kv(&["delete", "fruit"]).fails(1, "no key");
    // Bytes are bytes, from wherever and to wherever, and keys are keys.
    let bytes: Vec<u8> = (0..=127).collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    std::fs::write(&file, &bytes).unwrap();
    kv(&["put", "../a b?", "--file", file.to_str().unwrap()]).ok();
    assert_eq!(kv(&["get", "../a b?"]).ok().as_bytes(), bytes);
    run_with(&nodes, &["put", "-dash-", "-", "--once"], b"from a pipe").fails(2, "unexpected");
    run_with(&nodes, &["put", "--once", "--", "-dash-", "-"], b"from a pipe").ok();
    assert_eq!(kv(&["get", "--consistency", "stale", "--", "-dash-"]).ok(), "from a pipe");
    kv(&["get", "--consistency", "lease", "--", "-dash-"]).ok();
}

#[test]
fn output_for_programs_is_json() {
    let (_runtime, _serving, nodes) = serving(1);
    let kv = |arguments: &[&str]| run(&nodes, &[arguments, &["--output", "json"]].concat());
    assert_eq!(kv(&["put", "fruit", "apple"]).json(), json!({ "revision": 1 }));
    let got = json!({ "key": "fruit", "version": 1, "value": "apple" });
    assert_eq!(kv(&["get", "fruit"]).json(), got);
    assert_eq!(kv(&["list"]).json(), got);
    let error = kv(&["get", "nothing"]).fails(1, "");
    assert_eq!(serde_json::from_str::<Value>(&error).unwrap()["error"], "not_found");
    assert_eq!(kv(&["status"]).json()["nodes"][0]["status"]["role"], "leader");
    assert_eq!(kv(&["members"]).json()["voters"], json!(["node1"]));
    let bench = kv(&["bench", "--seconds", "1", "--clients", "2"]).json();
    assert_eq!(bench["failed"], 0);
    assert!(bench["requests"][1]["count"].as_u64().unwrap() > 0, "{bench}");
}

#[test]
fn lists_are_tables_and_go_on_over_pages() {
    let (runtime, serving, nodes) = serving(1);
    let operations: Vec<_> =
        (0..128).map(|number| json!({ "put": format!("k/{number:04}"), "value": "x" })).collect();
    for batch in 0..9 {
        let text = json!({ "operations": operations }).to_string();
        let text = text.replace("k/0", &format!("k/{batch}"));
        runtime.block_on(serving.post(0, "/txn", &text)).succeeded();
    }
    run(&nodes, &["put", "other", &"long\n".repeat(50)]).ok();
    let all = run(&nodes, &["list"]).ok();
    assert_eq!(all.lines().count(), 1 + 9 * 128 + 1);
    assert_eq!(
        all.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["key", "version", "value"]
    );
    assert!(all.lines().last().unwrap().contains("long\\nlong") && all.ends_with("…\n"), "{all}");
    let some = run(&nodes, &["list", "k/3", "--limit", "2", "--after", "k/3000"]).ok();
    assert_eq!(some, "key     version  value\nk/3001        4  x\nk/3002        4  x\n");
}

#[test]
fn the_next_node_is_asked_if_one_is_down() {
    let (runtime, mut serving, nodes) = serving(3);
    runtime.block_on(serving.kill(0));
    assert!(run(&nodes, &["put", "fruit", "apple"]).ok().contains("version"));
    assert_eq!(run(&nodes, &["get", "fruit"]).ok(), "apple");
    let status = run(&nodes, &["status"]).ok();
    assert!(status.lines().nth(1).unwrap().contains("no answer"), "{status}");
    assert!(status.contains("leader"), "{status}");
}

#[test]
fn exit_codes_tell_what_has_happened() {
    let nobody = format!("127.0.0.1:{},127.0.0.1:{}", free_port(), free_port());
    for command in [
        &["put", "a", "b"][..],
        &["get", "a"],
        &["status"],
        &["list"],
        &["watch"],
        &["transfer"],
        &["members"],
        &["bench"],
        &["backup", "nowhere"],
    ] {
        let arguments = [command, &["--timeout", "1"]].concat();
        run(&nobody, &arguments).fails(3, "");
    }
    run(&nobody, &["get", "a", "--timeout", "5"]).fails(3, "could be reached");
    run(&nobody, &["put", "a"]).fails(2, "<VALUE");
    run(&nobody, &["cas", "a", "b"]).fails(2, "--version");
    run(&nobody, &["nonsense"]).fails(2, "nonsense");
    run(&nobody, &["put", "a", "--file", "/does/not/exist"]).fails(2, "cannot be read");
    run(&nobody, &["serve", "--name", "a", "--config", "/does/not/exist"]).fails(2, "--config");
    run("", &["get", "a"]).fails(2, "");
    let (_runtime, _serving, nodes) = serving(1);
    run(&nodes, &["put", "", "b"]).fails(2, "must not be empty");
    run(&nodes, &["put", &"k".repeat(2000), "b"]).fails(2, "key_bytes");
    run(&nodes, &["transfer", "node9"]).fails(2, "no node \"node9\"");
    run(&nodes, &["members", "remove", "node9"]).fails(2, "node9");
    run(&nodes, &["backup", "/does/not/exist/file"]).fails(5, "cannot be written");
}

/// A server that takes requests and never answers: nobody knows what has become of them.
#[test]
fn a_lost_answer_leaves_the_outcome_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Reads the request, and hangs up.
            let _ = stream.unwrap().read(&mut [0; 4096]);
        }
    });
    run(&silent, &["put", "a", "b"]).fails(4, "may or may not have been done");
    run(&silent, &["put", "a", "b", "--once", "--timeout", "1"]).fails(3, "no answer");
    run(&silent, &["get", "a", "--timeout", "1"]).fails(3, "no answer");
    run(&silent, &["del", "a"]).fails(4, "may or may not have been done");
    run(&silent, &["cas", "a", "b", "--absent"]).fails(4, "--once");
    let (_runtime, _serving, nodes) = serving(1);
    let both = format!("{silent},{nodes}");
    run(&both, &["put", "a", "b"]).fails(4, "");
    // What is sent again may be asked for at the next.
    assert_eq!(run(&both, &["put", "a", "c", "--once"]).ok(), "a is now at version 1\n");
    assert_eq!(run(&both, &["get", "a"]).ok(), "c");
}

/// A node that hangs costs some time, and no more.
#[test]
fn a_node_that_hangs_is_passed_by() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = listener.local_addr().unwrap().to_string();
    let (_runtime, _serving, nodes) = serving(1);
    let both = format!("{hanging},{nodes}");
    run(&both, &["put", "a", "b", "--timeout", "2"]).fails(4, "may or may not have been done");
    run(&both, &["put", "a", "b", "--timeout", "4", "--once"]).ok();
    assert_eq!(run(&both, &["get", "a", "--timeout", "4"]).ok(), "b");
}

/// A process that is killed if the test fails.
struct Process(Child, BufReader<std::process::ChildStdout>);

impl Process {
    fn start(command: &mut Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Process(child, out)
    }

    /// The next line of its output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Waits for its end: exit code and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "no end in time");
            thread::sleep(Duration::from_millis(10));
        };
        let mut err = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (status.code(), err)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn changes_are_printed_as_they_happen() {
    let (_runtime, _serving, nodes) = serving(1);
    run(&nodes, &["put", "a", "one"]).ok();
    let mut watch = Process::start(program(&nodes).args(["watch", "--from", "1", "--count", "3"]));
    assert_eq!(watch.line(), "1 put a one\n");
    run(&nodes, &["put", "b", "two\nlines"]).ok();
    assert_eq!(watch.line(), "2 put b two\\nlines\n");
    run(&nodes, &["del", "a"]).ok();
    assert_eq!(watch.line(), "3 del a\n");
    assert_eq!(watch.end(), (Some(0), String::new()));
    let one =
        run(&nodes, &["watch", "b", "--from", "1", "--count", "1", "--output", "json"]).json();
    assert_eq!(one, json!({ "revision": 2, "key": "b", "deleted": false, "value": "two\nlines" }));
}

#[test]
fn watching_goes_on_at_the_next_node() {
    let (runtime, mut serving, nodes) = serving(3);
    let mut watch = Process::start(program(&nodes).arg("watch"));
    // Nothing tells that it watches by now, but for what it prints.
    let (stop, stopped) = std::sync::mpsc::channel();
    let mut command = program(&nodes);
    command.args(["put", "early", "x"]).stdout(Stdio::null());
    let writer = thread::spawn(move || {
        while stopped.try_recv().is_err() {
            assert!(command.status().unwrap().success());
        }
    });
    assert!(watch.line().ends_with(" put early x\n"));
    stop.send(()).unwrap();
    writer.join().unwrap();
    // The node that it watches is the first; another knows how it goes on.
    runtime.block_on(serving.stop(0));
    run(&nodes, &["put", "late", "y"]).ok();
    loop {
        let line = watch.line();
        match line.ends_with(" put late y\n") {
            true => break,
            false => assert!(line.ends_with(" put early x\n"), "{line}"),
        }
    }
}

/// The configuration of three nodes, and one that waits to be added.
fn configuration(directory: &Path) -> (String, String) {
    let (mut text, mut nodes) = ("cluster: shop\nnodes:\n".to_string(), Vec::new());
    for id in 1..=4 {
        let (raft, http) = (free_port(), format!("127.0.0.1:{}", free_port()));
        write!(text, "  - {{ name: node{id}, id: {id}, raft: 127.0.0.1:{raft}, http: {http}")
            .unwrap();
        text += if id == 4 { ", joining: true }\n" } else { " }\n" };
        nodes.push(http);
    }
    // A machine that is busy should not have elections in the midst of a test.
    text += "election_timeout_milliseconds: [1000, 1500]\nrequest_timeout_milliseconds: 20000\n";
    let file = directory.join("cluster.yaml");
    std::fs::write(&file, text).unwrap();
    (file.to_str().unwrap().to_string(), nodes.join(","))
}

#[test]
fn a_cluster_of_processes_is_run_changed_backed_up_and_restored() {
    let directory = tempfile::tempdir().unwrap();
    let (config, nodes) = configuration(directory.path());
    let kv = |arguments: &[&str]| run(&nodes, arguments);
    let start = |id: usize| {
        let name = format!("node{id}");
        let mut node =
            Process::start(program("").args(["serve", "--config", &config, "--name", &name]));
        let line = node.line();
        assert!(line.starts_with(&format!("{name} serves clients at http://127.0.0.1:")), "{line}");
        node
    };
    let mut running: Vec<_> = (1..=4).map(|id| Some(start(id))).collect();
    kv(&["put", "fruit", "apple", "--once"]).ok();
    let added = kv(&["members", "add", "node4"]).ok();
    assert!(
        added.contains("node4 now receives the log")
            && added.ends_with("done: node1, node2, node3, node4 vote\n"),
        "{added}"
    );
    let removed = kv(&["members", "remove", "node4"]).ok();
    assert!(removed.ends_with("done: node1, node2, node3 vote\n"), "{removed}");
    let learner = kv(&["members", "add", "node4", "--learner", "--output", "json"]).ok();
    assert!(learner.lines().last().unwrap().contains("\"learners\":[4]"), "{learner}");
    assert!(!learner.contains("joint"), "no other voters: {learner}");
    let members = kv(&["members"]).ok();
    assert!(members.lines().nth(4).unwrap().contains("learner"), "{members}");
    kv(&["members", "set", "--voters", "node1,node2,node3"]).ok();
    kv(&["transfer", "node2"]).ok();
    assert_eq!(kv(&["transfer", "node2"]).ok(), "node2 leads\n");
    // Whoever leads hands over before it ends.
    let leader = running[1].take().unwrap();
    leader.signal("TERM");
    let (code, log) = leader.end();
    assert!(code == Some(0) && log.contains("leads now"), "{code:?}: {log}");
    assert!(kv(&["status"]).ok().contains("leader"));
    kv(&["put", "fruit", "pear"]).ok();
    running[1] = Some(start(2));
    let file = directory.path().join("backup");
    let file = file.to_str().unwrap();
    let backup = kv(&["backup", file]).ok();
    assert!(backup.starts_with(&format!("{file} holds revision 2, ")), "{backup}");
    drop(running);
    // A new cluster from the backup, on new disks.
    let (again, nodes) = configuration(tempfile::tempdir_in(&directory).unwrap().keep().as_path());
    let restore = [
        "restore", file, "--config", &again, "--name", "node1", "--name", "node2", "--name",
        "node3",
    ];
    let restored = run("", &restore).ok();
    assert_eq!(restored.lines().count(), 3);
    assert_eq!(restored.lines().next().unwrap(), "node1 begins with revision 2, 1 keys");
    run("", &restore).fails(5, "node1 was not restored");
    let start = |name| {
        let mut node =
            Process::start(program("").args(["serve", "--config", &again, "--name", name]));
        node.line();
        node
    };
    let _running = ["node1", "node3"].map(start);
    assert_eq!(run(&nodes, &["get", "fruit"]).ok(), "pear");
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let (config, nodes) = configuration(directory.path());
    let serve = |name| run("", &["serve", "--config", &config, "--name", name]);
    serve("node9").fails(2, "node1, node2, node3");
    let _taken = TcpListener::bind(nodes.split(',').next().unwrap()).unwrap();
    serve("node1").fails(5, "change `http`");
    std::fs::write(&config, "cluster: shop\nnodes: 5\n").unwrap();
    serve("node1").fails(2, "line 2");
}

#[test]
fn the_demo_is_up_within_seconds_and_leaves_nothing() {
    let begun = Instant::now();
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Process::start(program("").arg("demo").env("TMPDIR", temporary.path()));
    let mut text = String::new();
    while !text.contains("Ctrl-C ends it") {
        let line = demo.line();
        assert!(!line.is_empty(), "{text}");
        text += &line;
    }
    let page = text.split("http://").nth(1).unwrap().split('/').next().unwrap().to_string();
    run(&page, &["put", "fruit", "apple"]).ok();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    // What it says to try is there to be tried.
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(lines.len() >= 8, "{text}");
    let export =
        lines.iter().find_map(|line| line.strip_prefix("export KV_NODES=")).map(str::to_string);
    let nodes = export.unwrap_or("127.0.0.1:8101,127.0.0.1:8102,127.0.0.1:8103".to_string());
    let program = env!("CARGO_BIN_EXE_kv");
    for line in lines.iter().filter_map(|line| line.strip_prefix(program)) {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let arguments = arguments.iter().map(|it| if *it == "5" { "1" } else { it });
        run(&nodes, &arguments.collect::<Vec<_>>()).ok();
    }
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 1);
    demo.signal("INT");
    let (code, err) = demo.end();
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn help_teaches() {
    let help = run("", &["--help"]).ok();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<_> = commands
        .lines()
        .filter_map(|line| {
            line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split_whitespace().next()
        })
        .collect();
    let want = [
        "serve", "demo", "get", "put", "del", "cas", "list", "watch", "status", "members",
        "transfer", "backup", "restore", "bench", "help",
    ];
    assert_eq!(names, want);
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    for name in &names[..names.len() - 1] {
        let help = run("", &[name, "--help"]).ok();
        assert!(help.contains("Example") || *name == "status", "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
    assert_eq!(run("", &["--version"]).ok(), format!("kv {}\n", env!("CARGO_PKG_VERSION")));
}
