//! Whole clusters of processes, as they run in earnest: concurrent clients over HTTP while nodes are
//! killed, frozen, cut off, started again, and handed leadership. What the clients saw must be linearizable,
//! key by key, and nothing that was acknowledged may be lost.
//!
//! `KV_PROOF_SECONDS` is how long each of them lasts (30), and `KV_PROOF_SEED` repeats one's decisions
//! (though not what the machine makes of them).

mod common;

use common::proxy::Proxy;
use common::{PATIENCE, free_port};
use little_raft_sim::linearizability::{Call, Model, Verdict, check};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const KEYS: usize = 6;
const CLIENTS: usize = 10;
/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The nodes of a cluster, each a process.
struct Processes {
    directory: tempfile::TempDir,
    http: Vec<String>,
    raft: Vec<String>,
    children: Vec<Option<Child>>,
    /// What stands on the way from one node to another.
    proxies: BTreeMap<(usize, usize), Proxy>,
}

impl Processes {
    /// Nodes that reach each other directly.
    fn start(nodes: usize) -> Processes {
        let processes = Processes::prepare(nodes);
        processes.run()
    }

    /// Nodes that reach each other through proxies.
    async fn start_apart(nodes: usize) -> Processes {
        let mut processes = Processes::prepare(nodes);
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| *to != from) {
                let proxy = Proxy::start(processes.raft[to].clone()).await;
                processes.proxies.insert((from, to), proxy);
            }
        }
        processes.run()
    }

    fn prepare(nodes: usize) -> Processes {
        let address = |_| format!("127.0.0.1:{}", free_port());
        Processes {
            directory: tempfile::TempDir::new().unwrap(),
            http: (0..nodes).map(address).collect(),
            raft: (0..nodes).map(address).collect(),
            children: (0..nodes).map(|_| None).collect(),
            proxies: BTreeMap::new(),
        }
    }

    fn run(mut self) -> Processes {
        let nodes = self.http.len();
        (0..nodes).for_each(|place| self.write_config(place, nodes));
        (0..nodes).for_each(|place| self.spawn(place));
        self
    }

    fn config(&self, place: usize) -> PathBuf {
        self.directory.path().join(format!("node{}.yaml", place + 1))
    }

    /// Writes a node's configuration, in which the nodes from a place on are joining.
    fn write_config(&self, place: usize, joining_from: usize) {
        let mut text = String::from(
            "cluster: proof\nheartbeat_milliseconds: 50\nelection_timeout_milliseconds: [300, 600]\n\
             request_timeout_milliseconds: 1500\nsnapshot_interval: 200\nnodes:\n",
        );
        for (other, (http, raft)) in self.http.iter().zip(&self.raft).enumerate() {
            let proxy = self.proxies.get(&(place, other)).map(|proxy| proxy.address.to_string());
            let (id, raft) = (other + 1, proxy.as_ref().unwrap_or(raft));
            let joining = other >= joining_from;
            let _ = writeln!(
                text,
                "  - {{ name: node{id}, id: {id}, raft: '{raft}', http: '{http}', joining: {joining} }}"
            );
        }
        std::fs::write(self.config(place), text).unwrap();
    }

    /// Cuts the ways between some nodes and the others, or only those from the some to the others.
    fn cut(&self, some: &[usize], both_ways: bool) {
        for ((from, to), proxy) in &self.proxies {
            let out = some.contains(from) && !some.contains(to);
            let back = some.contains(to) && !some.contains(from) && both_ways;
            proxy.harm.hangs.store(out || back, Ordering::Relaxed);
        }
    }

    fn spawn(&mut self, place: usize) {
        self.spawn_command(place, Command::new(env!("CARGO_BIN_EXE_kv")));
    }

    /// Starts a node none of whose files may become larger.
    fn spawn_limited(&mut self, place: usize, kilobytes: usize) {
        let mut command = Command::new("bash");
        // A signal would end it before it can say why.
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_kv")]);
        self.spawn_command(place, command);
    }

    fn spawn_command(&mut self, place: usize, mut command: Command) {
        let log = self.directory.path().join(format!("node{}.log", place + 1));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .args(["serve", "--name", &format!("node{}", place + 1), "--config"])
            .arg(self.config(place))
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children[place] = Some(child);
    }

    fn signal(&self, place: usize, signal: &str) {
        let Some(child) = &self.children[place] else { return };
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(status.unwrap().success(), "{signal}");
    }

    fn kill(&mut self, place: usize) {
        if let Some(mut child) = self.children[place].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Fails if a node has ended by itself.
    fn check_alive(&mut self) {
        for (place, child) in self.children.iter_mut().enumerate() {
            let ended = child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "node{} ended by itself: {ended:?}", place + 1);
        }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for id in 1..=self.http.len() {
            let log = std::fs::read_to_string(self.directory.path().join(format!("node{id}.log")));
            let log = log.unwrap_or_default();
            let from = log.len().saturating_sub(2000);
            let from = (from..).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            let _ = writeln!(text, "== node{id}\n{}", &log[from..]);
        }
        text
    }

    /// Waits until a write at a node is done.
    async fn wait_until_writable(&self, client: &Client, place: usize) {
        let url = format!("http://{}/kv/ready", self.http[place]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.put(&url).body("yes").timeout(TIMEOUT).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "node{} takes no writes\n{}",
                place + 1,
                self.logs()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        (0..self.children.len()).for_each(|place| self.kill(place));
    }
}

/// What a client does with a key, and what it learns.
#[derive(Clone, Debug, PartialEq)]
enum Operation {
    /// The value that was found; none if there was no key.
    Get(Option<u64>),
    Put(u64),
    Delete {
        existed: Option<bool>,
    },
    /// Puts a value only if there is no key; whether that was so, as far as is known.
    Create(u64, Option<bool>),
}

/// A key.
struct Register;

impl Model for Register {
    type State = Option<u64>;
    type Operation = Operation;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn apply(&self, state: &Option<u64>, operation: &Operation) -> Option<Option<u64>> {
        match operation {
            Operation::Get(found) => (found == state).then_some(*state),
            Operation::Put(value) => Some(Some(*value)),
            Operation::Delete { existed } => {
                existed.is_none_or(|existed| existed == state.is_some()).then_some(None)
            }
            Operation::Create(value, done) => match (done, state) {
                (Some(true) | None, None) => Some(Some(*value)),
                (Some(false) | None, Some(_)) => Some(*state),
                _ => None,
            },
        }
    }

    fn only_reads(&self, operation: &Operation) -> bool {
        matches!(operation, Operation::Get(_) | Operation::Create(_, Some(false)))
    }
}

/// What all clients have seen, key by key.
type History = Arc<Mutex<BTreeMap<usize, Vec<Call<Operation>>>>>;

/// What became of a request.
enum Answer {
    Done(Operation),
    /// It has certainly had no effect.
    Refused,
    Unknown,
}

/// One client, which asks any node, and for half of its writes does so in a session.
struct Caller {
    client: Client,
    http: Arc<Mutex<Vec<String>>>,
    began: Instant,
    random: StdRng,
    number: u64,
    next: u64,
    /// The client id and the latest sequence number.
    session: Option<(u64, u64)>,
    /// Whether the latest request belongs to it.
    in_session: bool,
    history: History,
    acknowledged: u64,
}

impl Caller {
    async fn run(mut self, stop: Arc<AtomicBool>) -> u64 {
        while !stop.load(Ordering::Relaxed) {
            let key = self.random.random_range(0..KEYS);
            self.next += 1;
            let value = self.number * 1_000_000 + self.next;
            let wanted = match self.random.random_range(0..10) {
                0..4 => Operation::Get(None),
                4..8 => Operation::Put(value),
                8 => Operation::Delete { existed: None },
                _ => Operation::Create(value, None),
            };
            let invoked = self.began.elapsed().as_nanos() as u64;
            let answer = self.call(key, &wanted).await;
            let now = self.began.elapsed().as_nanos() as u64;
            let call = match answer {
                Answer::Done(operation) => Call { operation, invoked, returned: Some(now) },
                // A read that was not answered tells nothing.
                Answer::Unknown if !matches!(wanted, Operation::Get(_)) => {
                    Call { operation: wanted.clone(), invoked, returned: None }
                }
                Answer::Refused | Answer::Unknown => {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            self.acknowledged += u64::from(call.returned.is_some());
            let answered = call.returned.is_some().then(|| call.operation.clone());
            self.history.lock().unwrap().entry(key).or_default().push(call);
            sleep(Duration::from_millis(self.random.random_range(0..8))).await;
            if let (Some(answered), Some(session)) = (answered, self.session)
                && self.in_session
                && self.random.random_bool(0.5)
            {
                self.repeat(key, &wanted, &answered, session).await;
            }
        }
        self.acknowledged
    }

    /// Sends a request of a session that was answered once more. The answer must be the same, and if
    /// it had any effect the history of those who look on would show it.
    async fn repeat(
        &mut self, key: usize, wanted: &Operation, answered: &Operation, session: (u64, u64),
    ) {
        if let Answer::Done(again) = self.ask(key, wanted, Some(session)).await {
            assert_eq!(again, *answered, "{wanted:?} was done once more");
        }
    }

    /// Asks some node, and with a session others as long as nobody knows what has become of it.
    async fn call(&mut self, key: usize, wanted: &Operation) -> Answer {
        let reads = matches!(wanted, Operation::Get(_));
        let in_session = !reads && self.random.random_bool(0.5);
        let session = if in_session { self.next_request().await } else { None };
        self.in_session = session.is_some();
        let tries = if session.is_some() { 4 } else { 1 };
        let mut refused = true;
        for _ in 0..tries {
            match self.ask(key, wanted, session).await {
                Answer::Done(operation) => return Answer::Done(operation),
                Answer::Refused => {}
                Answer::Unknown => refused = false,
            }
        }
        if session.is_some() {
            // What the next request of this session means depends on this one; begin another.
            self.session = None;
        }
        if refused { Answer::Refused } else { Answer::Unknown }
    }

    fn url(&mut self, path: &str) -> String {
        let http = self.http.lock().unwrap();
        let place = self.random.random_range(0..http.len());
        format!("http://{}{path}", http[place])
    }

    /// The next request of this client's session, which is opened if there is none.
    async fn next_request(&mut self) -> Option<(u64, u64)> {
        if self.session.is_none() {
            let url = self.url("/sessions");
            let answer = self.client.post(url).timeout(TIMEOUT).send().await.ok()?;
            let opened: Value = answer.json().await.ok()?;
            self.session = Some((opened.get("client")?.as_u64()?, 0));
        }
        let session = self.session.as_mut()?;
        session.1 += 1;
        Some(*session)
    }

    async fn ask(&mut self, key: usize, wanted: &Operation, session: Option<(u64, u64)>) -> Answer {
        let url = self.url(&format!("/kv/key{key}"));
        let request = match wanted {
            Operation::Get(_) => self.client.get(url),
            Operation::Put(value) => self.client.put(url).body(value.to_string()),
            Operation::Delete { .. } => self.client.delete(url),
            Operation::Create(value, _) => {
                self.client.put(url).header("If-None-Match", "*").body(value.to_string())
            }
        };
        let request = match session {
            Some((client, sequence)) => {
                request.header("Kv-Client", client).header("Kv-Sequence", sequence)
            }
            None => request,
        };
        let answer = match request.timeout(TIMEOUT).send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Answer::Refused,
            Err(_) => return Answer::Unknown,
        };
        let status = answer.status();
        let Ok(body) = answer.text().await else { return Answer::Unknown };
        understand(wanted, status, &body)
    }
}

/// What an answer means.
fn understand(wanted: &Operation, status: StatusCode, body: &str) -> Answer {
    match (status.as_u16(), wanted) {
        (200, Operation::Get(_)) => Answer::Done(Operation::Get(Some(body.parse().unwrap()))),
        (404, Operation::Get(_)) => Answer::Done(Operation::Get(None)),
        (200, Operation::Put(value)) => Answer::Done(Operation::Put(*value)),
        (200, Operation::Delete { .. }) => Answer::Done(Operation::Delete { existed: Some(true) }),
        (404, Operation::Delete { .. }) => Answer::Done(Operation::Delete { existed: Some(false) }),
        (200, Operation::Create(value, _)) => Answer::Done(Operation::Create(*value, Some(true))),
        (412, Operation::Create(value, _)) => Answer::Done(Operation::Create(*value, Some(false))),
        (429 | 503, _) => Answer::Refused,
        (504, _) => Answer::Unknown,
        _ => panic!("{wanted:?}: {status} {body}"),
    }
}

/// Clients at work.
struct Load {
    began: Instant,
    /// Where clients ask, which may change meanwhile.
    http: Arc<Mutex<Vec<String>>>,
    history: History,
    stop: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn start(http: &[String], seed: u64) -> Load {
        let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
        let (began, http) = (Instant::now(), Arc::new(Mutex::new(http.to_vec())));
        let callers = (0..CLIENTS as u64).map(|number| {
            let caller = Caller {
                client: Client::new(),
                http: http.clone(),
                began,
                random: StdRng::seed_from_u64(seed ^ (number + 1)),
                number,
                next: 0,
                session: None,
                in_session: false,
                history: history.clone(),
                acknowledged: 0,
            };
            tokio::spawn(caller.run(stop.clone()))
        });
        let callers = callers.collect();
        Load { began, http, callers, history, stop }
    }

    /// Ends the clients, reads every key once more at every node, and checks everything.
    async fn finish(self, processes: &Processes) {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = 0;
        for caller in self.callers {
            acknowledged += caller.await.unwrap();
        }
        let mut history = std::mem::take(&mut *self.history.lock().unwrap());
        let client = Client::new();
        for (key, calls) in &mut history {
            for place in (0..processes.http.len()).filter(|it| processes.children[*it].is_some()) {
                let url = format!("http://{}/kv/key{key}", processes.http[place]);
                let invoked = self.began.elapsed().as_nanos() as u64;
                let found = last_read(&client, &url).await;
                let returned = Some(self.began.elapsed().as_nanos() as u64);
                calls.push(Call { operation: Operation::Get(found), invoked, returned });
            }
        }
        for (key, calls) in &history {
            let verdict = check(&Register, calls, 50_000_000);
            let count = calls.len();
            assert_eq!(verdict, Verdict::Linearizable, "key{key}, {count} calls: {calls:#?}");
        }
        eprintln!("{acknowledged} calls answered, all linearizable");
        assert!(acknowledged > 50, "{acknowledged} calls answered are no proof");
    }
}

async fn last_read(client: &Client, url: &str) -> Option<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(answer) = client.get(url).timeout(TIMEOUT).send().await {
            match (answer.status().as_u16(), answer.text().await) {
                (200, Ok(text)) => return Some(text.parse().unwrap()),
                (404, _) => return None,
                _ => {}
            }
        }
        assert!(Instant::now() < deadline, "no answer from {url}");
    }
}

/// How long a proof lasts.
fn duration() -> Duration {
    let seconds = std::env::var("KV_PROOF_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

fn seed() -> u64 {
    let given = std::env::var("KV_PROOF_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("KV_PROOF_SEED={seed}");
    seed
}

/// Does something to a cluster of which a majority stays up, and undoes it.
async fn harm(processes: &mut Processes, client: &Client, random: &mut StdRng) {
    let nodes = processes.http.len();
    let most = (nodes - 1) / 2;
    let first = random.random_range(0..nodes);
    let victims: Vec<_> =
        (0..random.random_range(1..=most)).map(|number| (first + number) % nodes).collect();
    let pause = Duration::from_millis(random.random_range(200..1500));
    match random.random_range(0..14) {
        0..4 => {
            victims.iter().for_each(|place| processes.kill(*place));
            sleep(pause).await;
            victims.iter().for_each(|place| processes.spawn(*place));
        }
        4..7 => {
            victims.iter().for_each(|place| processes.signal(*place, "-STOP"));
            sleep(pause).await;
            victims.iter().for_each(|place| processes.signal(*place, "-CONT"));
        }
        7..9 => {
            let url = format!("http://{}/cluster/leader", processes.http[first]);
            let to = serde_json::json!({ "to": random.random_range(1..=nodes) });
            // It may fail for many reasons.
            let _ = client.post(url).json(&to).timeout(TIMEOUT).send().await;
        }
        9..13 => {
            processes.cut(&victims, random.random_bool(0.7));
            sleep(2 * pause).await;
            processes.cut(&[], true);
        }
        _ => {
            // All at once: nothing but the disks is left.
            (0..nodes).for_each(|place| processes.kill(place));
            (0..nodes).for_each(|place| processes.spawn(place));
        }
    }
}

async fn proof(nodes: usize) {
    let seed = seed();
    let (client, mut random) = (Client::new(), StdRng::seed_from_u64(seed));
    let mut processes = Processes::start_apart(nodes).await;
    processes.wait_until_writable(&client, 0).await;
    let load = Load::start(&processes.http, seed);
    let end = Instant::now() + duration();
    while Instant::now() < end {
        harm(&mut processes, &client, &mut random).await;
        sleep(Duration::from_millis(random.random_range(100..1000))).await;
        processes.check_alive();
    }
    for place in 0..nodes {
        processes.wait_until_writable(&client, place).await;
    }
    load.finish(&processes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_stay_linearizable_whatever_happens_to_them() {
    proof(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_processes_stay_linearizable_whatever_happens_to_them() {
    proof(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_is_replaced_under_load() {
    let client = Client::new();
    let mut processes = Processes::start(3);
    processes.wait_until_writable(&client, 0).await;
    let load = Load::start(&processes.http, seed());
    for round in 0..3_usize {
        let (place, id) = (3 + round, 4 + round);
        processes.http.push(format!("127.0.0.1:{}", free_port()));
        processes.raft.push(format!("127.0.0.1:{}", free_port()));
        processes.children.push(None);
        processes.write_config(place, 3);
        processes.spawn(place);
        let (http, raft) = (&processes.http[place], &processes.raft[place]);
        let node = serde_json::json!(
            { "id": id, "name": format!("node{id}"), "raft": raft, "http": http }
        );
        let voters: Vec<_> = (id - 2..=id).collect();
        let change = serde_json::json!({ "voters": voters, "nodes": [node] });
        // One that stays is asked, and asked again if it is interrupted.
        let url = format!("http://{}/cluster/members", processes.http[round + 1]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.put(&url).json(&change).timeout(PATIENCE).send().await;
            let text = match answer {
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            if text.contains("\"done\"") {
                break;
            }
            assert!(Instant::now() < deadline, "{text}\n{}", processes.logs());
        }
        *load.http.lock().unwrap() = processes.http[round + 1..].to_vec();
        processes.kill(round);
        processes.wait_until_writable(&client, place).await;
    }
    load.finish(&processes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_one_process_and_loses_nothing() {
    let client = Client::new();
    let mut processes = Processes::start(3);
    processes.wait_until_writable(&client, 0).await;
    // The next to run out of space is started again with a limit that its log soon exceeds.
    processes.kill(0);
    let kilobytes = 3000;
    processes.spawn_limited(0, kilobytes);
    processes.wait_until_writable(&client, 0).await;
    let _ = client
        .post(format!("http://{}/cluster/leader", processes.http[1]))
        .json(&serde_json::json!({ "to": 1 }))
        .timeout(TIMEOUT)
        .send()
        .await;
    let load = Load::start(&processes.http, seed());
    let value = "x".repeat(200_000);
    let deadline = Instant::now() + PATIENCE;
    let mut written = 0;
    let status = loop {
        let url = format!("http://{}/kv/large{written}", processes.http[1]);
        let answer = client.put(url).body(value.clone()).timeout(TIMEOUT).send().await;
        written += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
        let child = processes.children[0].as_mut().unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "{written} writes\n{}", processes.logs());
    };
    assert!(!status.success() && status.code().is_some(), "it says that it has failed: {status}");
    let logs = processes.logs();
    assert!(logs.contains("has failed"), "{logs}");
    processes.children[0] = None;
    processes.wait_until_writable(&client, 1).await;
    // With space again all is as it was.
    processes.spawn(0);
    processes.wait_until_writable(&client, 0).await;
    let url = format!("http://{}/kv?prefix=large&limit=1000", processes.http[0]);
    let listing: Value = client.get(url).send().await.unwrap().json().await.unwrap();
    assert!(listing["entries"].as_array().unwrap().len() >= written, "{written} were acknowledged");
    load.finish(&processes).await;
}
