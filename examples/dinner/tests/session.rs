//! The program, in one process and in several.

use dinner::free_addresses;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dinner"))
}

fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = program().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn guests_in_one_process_agree() {
    let (well, out, _) = run(&["--guests", "5", "--options", "soup,cake"]);
    assert!(well, "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 11, "{out}");
    for (number, line) in (1..).zip(&lines[..5]) {
        let option = ["cake", "soup"][number % 2];
        assert!(line.starts_with(&format!("guest {number} at 127.0.0.1:")), "{line}");
        assert!(line.ends_with(&format!("would like {option}")), "{line}");
    }
    let heard = lines[5].strip_prefix("guest 1 hears ").unwrap();
    assert_eq!(heard.split(", ").count(), 5, "{heard}");
    for (number, line) in (1..).zip(&lines[5..10]) {
        assert_eq!(*line, format!("guest {number} hears {heard}"));
    }
    let first = heard.split(' ').next().unwrap();
    assert_eq!(lines[10], format!("all agree on the first: {first}"));
}

/// Without what differs from run to run.
fn shapes(text: &str) -> Vec<String> {
    let shape = |line: &str| {
        let line = line.split(" hears ").next().unwrap_or_default();
        let line = line.split(" first: ").next().unwrap_or_default();
        line.split(':').map(|it| it.trim_start_matches(|it: char| it.is_ascii_digit())).collect()
    };
    text.lines().map(shape).collect()
}

#[test]
fn the_session_in_the_readme_goes_as_it_says() {
    let readme = include_str!("../README.md");
    let (_, session) = readme.split_once("$ cargo run -p dinner\n").unwrap();
    let (session, _) = session.split_once("```").unwrap();
    let (well, out, error) = run(&[]);
    assert!(well, "{error}");
    assert_eq!(shapes(&out), shapes(session));
}

#[test]
fn what_is_wrong_with_the_arguments_is_told() {
    for arguments in [&["--guests", "0"][..], &["--listen", "127.0.0.1:1"], &["--peers", "nobody"]]
    {
        let (well, out, error) = run(arguments);
        assert!(!well && out.is_empty() && error.contains("--"), "{arguments:?}: {error}");
    }
}

/// A guest in a process of its own.
struct Guest {
    child: Child,
    say: ChildStdin,
    lines: crossbeam_channel::Receiver<String>,
}

impl Guest {
    fn start(addresses: &[SocketAddr], own: usize, directory: &Path) -> Guest {
        let peers = addresses.iter().filter(|it| **it != addresses[own]).map(|it| it.to_string());
        let mut child = program()
            .args(["--listen", &addresses[own].to_string()])
            .args(["--peers", &peers.collect::<Vec<_>>().join(",")])
            .arg("--directory")
            .arg(directory.join(own.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = crossbeam_channel::unbounded();
        thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|it| sender.send(it))
        });
        let guest = Guest { child, say, lines };
        assert!(guest.hear(1)[0].starts_with("seated at "));
        guest
    }

    fn say(&mut self, line: &str) {
        writeln!(self.say, "{line}").unwrap();
    }

    fn hear(&self, lines: usize) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        (0..lines).map(|_| self.lines.recv_deadline(deadline).expect("a line in time")).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn guests_in_processes_of_their_own_agree_though_each_is_killed_in_turn() {
    let (addresses, directory) = (free_addresses(3).unwrap(), tempfile::tempdir().unwrap());
    let start = |own| Guest::start(&addresses, own, directory.path());
    let mut guests: Vec<_> = (0..3).map(start).collect();
    let mut said = Vec::new();
    for killed in 0..3 {
        let speaker = (killed + 1) % 3;
        for number in 0..2 {
            guests[speaker].say(&format!("{killed} {number}"));
            let place = said.len() + 1;
            said.push(format!("{place}. {}: {killed} {number}", addresses[speaker]));
            // The first is said while all are there, the second while one is gone.
            if number == 0 {
                guests.iter().for_each(|guest| assert_eq!(guest.hear(1), said[place - 1..]));
                guests[killed].child.kill().unwrap();
                guests[killed].child.wait().unwrap();
            }
        }
        for other in (0..3).filter(|other| *other != killed) {
            assert_eq!(guests[other].hear(1), said[said.len() - 1..]);
        }
        guests[killed] = start(killed);
        assert_eq!(guests[killed].hear(said.len()), said);
    }
}
