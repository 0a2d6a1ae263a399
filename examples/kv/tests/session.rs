//! Replays the sessions in README.md against a cluster of three nodes.
//!
//! In what the README shows, `…` stands for anything within a line, and for any lines if it is alone.

use regex::Regex;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

const README: &str = include_str!("../README.md");
/// How the README calls the program.
const PROGRAM: &str = "target/debug/kv";

/// The commands of the README's sessions, each with what it prints.
fn sessions() -> Vec<(String, Vec<String>)> {
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    for block in README.split("```console\n").skip(1) {
        let (session, _) = block.split_once("\n```").expect("an end of the block");
        for line in session.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push((command.to_string(), Vec::new())),
                (None, Some((_, output))) => output.push(line.to_string()),
                (None, None) => panic!("output before any command: {line}"),
            }
        }
    }
    steps
}

/// What output must look like.
fn pattern(lines: &[String]) -> Regex {
    let line = |line: &String| match line.as_str() {
        "…" => "(?:.*\n)*?".to_string(),
        text => text.split('…').map(regex::escape).collect::<Vec<_>>().join(".*") + "\n",
    };
    Regex::new(&format!("^{}$", lines.iter().map(line).collect::<String>())).unwrap()
}

#[track_caller]
fn compare(command: &str, shown: &[String], printed: &str) {
    let mut printed = printed.replace('\r', "");
    if !printed.is_empty() && !printed.ends_with('\n') {
        printed.push('\n');
    }
    // A line that says nothing is no matter.
    let printed: String =
        printed.lines().filter(|it| !it.is_empty()).map(|it| format!("{it}\n")).collect();
    let shown: Vec<_> = shown.iter().filter(|it| !it.is_empty()).cloned().collect();
    assert!(
        pattern(&shown).is_match(&printed),
        "$ {command}\n{printed}instead of\n{}",
        shown.join("\n")
    );
}

/// The demo, which is ended with the test.
struct Demo(Child, BufReader<ChildStdout>);

impl Demo {
    fn start() -> Demo {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv"));
        let mut child = command.arg("demo").stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Demo(child, out)
    }

    /// All that it says at first.
    fn greeting(&mut self) -> String {
        let mut text = String::new();
        while !text.contains("Ctrl-C ends it") {
            assert_ne!(self.1.read_line(&mut text).unwrap(), 0, "{text}");
        }
        text
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let ended = Command::new("kill").args(["-s", "INT", &self.0.id().to_string()]).status();
        if !ended.is_ok_and(|status| status.success()) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

#[test]
fn the_sessions_in_the_readme_go_as_it_says() {
    let mut steps = sessions().into_iter();
    let mut demo = Demo::start();
    let greeting = demo.greeting();
    // The ports may be taken; then others are used, and the demo says which.
    let address = Regex::new(r"127\.0\.0\.1:\d+").unwrap();
    let usual = ["127.0.0.1:8101", "127.0.0.1:8102", "127.0.0.1:8103"].map(str::to_string).to_vec();
    let export = greeting.lines().find(|line| line.contains("KV_NODES="));
    let actual = match export {
        Some(line) => address.find_iter(line).map(|it| it.as_str().to_string()).collect(),
        None => usual.clone(),
    };
    let exchange = |text: &str, from: &[String], to: &[String]| {
        let other = |found: &regex::Captures| {
            let place = from.iter().position(|it| *it == found[0]);
            place.map_or(found[0].to_string(), |place| to[place].clone())
        };
        address.replace_all(text, other).into_owned()
    };
    let (command, shown) = steps.next().unwrap();
    assert_eq!(command, "cargo run -p kv -- demo");
    let said = exchange(&greeting, &actual, &usual).replace(env!("CARGO_BIN_EXE_kv"), PROGRAM);
    let said: Vec<_> = said.lines().filter(|line| !line.contains("KV_NODES=")).collect();
    compare(&command, &shown, &said.join("\n"));

    let directory = tempfile::tempdir().unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_kv")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut replayed = 0;
    for (command, shown) in steps {
        let temporary = directory.path().to_str().unwrap();
        let typed = exchange(&command, &usual, &actual).replace("/tmp", temporary);
        let typed = typed.replace("alias kv=target/debug/kv", "");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>&1; {typed}")]).env("PATH", &path);
        let output = shell.env("KV_NODES", actual.join(",")).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap().replace(temporary, "/tmp");
        if command.starts_with("curl") && output.status.code() == Some(127) {
            let word =
                "\nSKIPPED: the README's curl commands are not replayed, since there is no curl\n";
            let _ = std::io::stderr().write_all(word.as_bytes());
            break;
        }
        compare(&command, &shown, &exchange(&printed, &actual, &usual));
        replayed += 1;
    }
    assert!(replayed >= 11, "{replayed}");
}

#[test]
fn patterns_tell_right_from_wrong() {
    let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
    let right = pattern(&lines("a … c\n…\nend"));
    assert!(right.is_match("a b c\nend\n") && right.is_match("a b c\nx\ny\nend\n"));
    for wrong in ["a b c\n", "a b d\nend\n", "a b c\nend\nmore\n", "x\na b c\nend\n"] {
        assert!(!right.is_match(wrong), "{wrong}");
    }
}

#[test]
fn the_configuration_in_the_readme_is_one() {
    let (_, block) = README.split_once("```yaml\n").unwrap();
    let config = kv::config::Config::parse(block.split_once("```").unwrap().0).unwrap();
    assert_eq!((config.nodes.len(), config.limits.key_bytes), (3, 1024));
    let defaults = kv::config::Limits::default();
    assert_eq!(config.limits, defaults, "the README says that these are the defaults");
}

/// The refusals in the README's table are those that the server has, and the other way round.
#[test]
fn the_readme_names_every_refusal() {
    let mut sources = String::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http")).unwrap() {
        sources += &std::fs::read_to_string(file.unwrap().path()).unwrap();
    }
    let code = Regex::new(r#"(?:StatusCode::[A-Z_]+,|bad\(|refuse\()\s*"([a-z_]+)""#).unwrap();
    let codes: std::collections::BTreeSet<_> =
        code.captures_iter(&sources).map(|it| it[1].to_string()).collect();
    assert!(codes.len() > 25, "{codes:?}");
    for code in codes.iter().filter(|code| *code != "bug") {
        assert!(README.contains(&format!("`{code}`")), "{code} is not in the README");
    }
    let named = Regex::new("(?m)^\\| \\d{3} \\|([^|]*)\\|").unwrap();
    let quoted = Regex::new("`([a-z_]+)`").unwrap();
    for row in named.captures_iter(README) {
        for name in quoted.captures_iter(&row[1]) {
            assert!(codes.contains(&name[1]), "{} is nowhere in the code", &name[1]);
        }
    }
}
