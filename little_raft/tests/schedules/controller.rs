//! Who runs next: real threads, of which one goes on at a time, from one point to the next.
//!
//! A thread stops at every [`pause`], and goes on when the controller says so. In between it may
//! come to wait for something else: a mutex that another thread holds while it stops, or the
//! replica's own channels. The controller sees that too, from the thread's state where the system
//! tells it and otherwise from its not arriving anywhere, and lets another one go on. So nothing
//! depends on how long anything takes: what is suspicious is judged only if it is still so after
//! [`DEADLINE`].

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No condition takes this long, however busy the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Where a thread that is not at any point is looked at again.
const GLANCE: Duration = Duration::from_micros(60);
/// A thread of which the system tells nothing is taken to be waiting after so many glances.
const GLANCES: usize = 200;
/// More points than any schedule has, unless a thread goes round in circles.
const MOST_STEPS: usize = 20_000;

type Condition = Box<dyn Fn() -> bool + Send>;

thread_local! {
    /// Which of a controller's threads this one is.
    static MYSELF: RefCell<Option<(Arc<Stage>, usize)>> = const { RefCell::new(None) };
}

/// Stops here until the controller lets this thread go on. Does nothing in other threads.
pub(crate) fn pause(point: &'static str) {
    wait_until(point, || true);
}

/// Stops here until something is so and the controller lets this thread go on.
pub(crate) fn wait_until(point: &'static str, is_so: impl Fn() -> bool + Send + 'static) {
    let Some((stage, me)) = MYSELF.with_borrow(Clone::clone) else { return };
    let mut threads = stage.arrive(me, Place::At(point, Box::new(is_so)));
    let go = threads[me].go.clone();
    while matches!(threads[me].place, Place::At(..)) {
        threads = go.wait(threads).unwrap_or_else(PoisonError::into_inner);
    }
}

enum Place {
    /// Somewhere between two points: at work, or waiting for a mutex or a channel.
    Between,
    At(&'static str, Condition),
    /// With what it said if it panicked.
    Ended(Option<String>),
}

struct Thread {
    name: String,
    /// Whether it has things to do and then ends. The others serve until they are told to stop.
    is_user: bool,
    place: Place,
    go: Arc<Condvar>,
    /// Where the system tells whether it sleeps.
    state: Option<Arc<File>>,
}

#[derive(Default)]
struct Stage {
    threads: Mutex<Vec<Thread>>,
    /// How often a thread has arrived at a point or at its end.
    arrivals: AtomicUsize,
    news: Condvar,
}

impl Stage {
    fn threads(&self) -> MutexGuard<'_, Vec<Thread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread is somewhere now.
    fn arrive(&self, me: usize, place: Place) -> MutexGuard<'_, Vec<Thread>> {
        let mut threads = self.threads();
        threads[me].place = place;
        self.arrivals.fetch_add(1, SeqCst);
        self.news.notify_one();
        threads
    }

    /// Waits until a thread arrives that had not when there were so many arrivals, though not long.
    fn glance(&self, arrivals: usize, time: Duration) {
        let unchanged = |_: &mut Vec<Thread>| self.arrivals.load(SeqCst) == arrivals;
        drop(self.news.wait_timeout_while(self.threads(), time, unchanged));
    }
}

/// The state that the system gives to this thread, as a file to read it from.
fn own_state() -> Option<File> {
    let thread = std::fs::read_link("/proc/thread-self").ok()?;
    File::open(std::path::Path::new("/proc").join(thread).join("stat")).ok()
}

/// Whether the system says that a thread sleeps.
fn sleeps(mut state: &File) -> Option<bool> {
    let mut bytes = [0; 256];
    state.rewind().ok()?;
    let length = state.read(&mut bytes).ok()?;
    let name_ends = bytes[..length].iter().rposition(|byte| *byte == b')')?;
    bytes.get(name_ends + 2).map(|state| *state == b'S')
}

/// What the threads do together, as the controller wants to know it.
pub(crate) trait Play {
    /// A law that holds whenever all threads have stopped, given where each of them is.
    fn law(&self, points: &[(&str, &str)]) -> Result<(), String>;

    /// Whether everything that the users wanted is done, now that they have ended.
    fn is_done(&self) -> Result<(), String>;

    /// Whether it ended as it should, now that everybody has.
    fn verdict(&self) -> Result<(), String>;

    /// Tells everybody else to end.
    fn end(&self);

    /// Whether threads that wait come back by themselves, because time passes.
    fn time_passes(&self) -> bool;
}

/// Chooses the thread that goes on among those that can, given which one was the last.
pub(crate) type Choose<'a> = &'a mut dyn FnMut(&[usize], Option<usize>) -> usize;

/// A set of threads, and what they have done so far.
#[derive(Default)]
pub(crate) struct Controller {
    stage: Arc<Stage>,
    trace: Vec<(usize, &'static str)>,
}

impl Controller {
    /// Begins a thread that has something to do and then ends.
    pub(crate) fn user(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        self.spawn(name, true, work);
    }

    /// Begins a thread that serves until [`Play::end`].
    pub(crate) fn server(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        self.spawn(name, false, work);
    }

    fn spawn(&self, name: &str, is_user: bool, work: impl FnOnce() + Send + 'static) {
        let (place, go) = (Place::Between, Arc::default());
        let mut threads = self.stage.threads();
        let me = threads.len();
        threads.push(Thread { name: name.to_string(), is_user, place, go, state: None });
        drop(threads);
        let stage = self.stage.clone();
        thread::spawn(move || {
            stage.threads()[me].state = own_state().map(Arc::new);
            MYSELF.set(Some((stage.clone(), me)));
            let ended = catch_unwind(AssertUnwindSafe(|| {
                pause("begin");
                work();
            }));
            let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast_ref().copied().unwrap_or("a panic").to_string(),
            };
            drop(stage.arrive(me, Place::Ended(ended.err().map(text))));
        });
    }

    /// Runs all threads to their ends, and returns in how many steps.
    ///
    /// # Errors
    /// What went wrong, with everything that was done until then.
    pub(crate) fn run(&mut self, play: &dyn Play, choose: Choose) -> Result<usize, String> {
        self.direct(play, choose).map_err(|wrong| self.report(&wrong))?;
        Ok(self.trace.len())
    }

    fn direct(&mut self, play: &dyn Play, choose: Choose) -> Result<(), String> {
        let (mut last, mut is_ending) = (None, false);
        while self.trace.len() < MOST_STEPS {
            self.settle();
            self.in_time(|| {
                play.law(&self.points().iter().map(|(a, b)| (&a[..], *b)).collect::<Vec<_>>())
            })?;
            let ready = self.ready();
            let users_ended = self.all_ended(|thread| thread.is_user)?;
            if self.all_ended(|_| true)? {
                return play.is_done().and_then(|()| play.verdict());
            }
            let may_end = users_ended && !is_ending && (ready.is_empty() || play.time_passes());
            if may_end && play.is_done().is_ok() {
                is_ending = true;
                play.end();
            } else if ready.is_empty() {
                self.in_time(|| self.stands_still(play, users_ended && !is_ending))?;
            } else {
                let chosen = choose(&ready, last);
                last = Some(chosen);
                self.step(chosen);
            }
        }
        Err(format!("no end after {MOST_STEPS} steps: something goes round in circles"))
    }

    /// Nobody can go on: an error, unless somebody comes back or all is done after all.
    fn stands_still(&self, play: &dyn Play, may_be_done: bool) -> Result<(), String> {
        let done = if may_be_done { play.is_done() } else { Err("deadlock".to_string()) };
        let arrived = !self.ready().is_empty() || self.all_ended(|_| true)?;
        if arrived { Ok(()) } else { done.map_err(|wrong| format!("nobody can go on: {wrong}")) }
    }

    /// Checks something again and again until it holds or the deadline has passed.
    fn in_time(&self, check: impl Fn() -> Result<(), String>) -> Result<(), String> {
        let mut checked = check();
        let began = Instant::now();
        while checked.is_err() && began.elapsed() < DEADLINE {
            let arrivals = self.stage.arrivals.load(SeqCst);
            self.stage.glance(arrivals, Duration::from_millis(1));
            checked = check();
        }
        checked
    }

    /// Waits until every thread is at a point, has ended, or sleeps.
    fn settle(&self) {
        let stage = &self.stage;
        for glances in 0.. {
            let arrivals = stage.arrivals.load(SeqCst);
            let is_between = |thread: &&Thread| matches!(thread.place, Place::Between);
            let states: Vec<_> =
                stage.threads().iter().filter(is_between).map(|it| it.state.clone()).collect();
            // Looked at without the mutex, since a thread that waits for it must not seem to sleep.
            let works = |state: &Option<Arc<File>>| match state.as_deref().and_then(sleeps) {
                Some(sleeps) => !sleeps,
                None => glances < GLANCES,
            };
            let somebody_works = states.iter().any(works);
            if !somebody_works && stage.arrivals.load(SeqCst) == arrivals {
                return;
            }
            stage.glance(arrivals, GLANCE);
        }
    }

    fn points(&self) -> Vec<(String, &'static str)> {
        let threads = self.stage.threads();
        let point = |thread: &Thread| match &thread.place {
            Place::At(point, _) => Some((thread.name.clone(), *point)),
            _ => None,
        };
        threads.iter().filter_map(point).collect()
    }

    fn ready(&self) -> Vec<usize> {
        let threads = self.stage.threads();
        let is_ready = |thread: &Thread| matches!(&thread.place, Place::At(_, is_so) if is_so());
        (0..threads.len()).filter(|number| is_ready(&threads[*number])).collect()
    }

    /// Whether all of some threads have ended; an error if any has panicked.
    fn all_ended(&self, of: impl Fn(&Thread) -> bool) -> Result<bool, String> {
        let threads = self.stage.threads();
        for thread in threads.iter() {
            if let Place::Ended(Some(panic)) = &thread.place {
                return Err(format!("{} panicked: {panic}", thread.name));
            }
        }
        Ok(threads.iter().filter(|it| of(it)).all(|it| matches!(it.place, Place::Ended(_))))
    }

    fn step(&mut self, number: usize) {
        let mut threads = self.stage.threads();
        let thread = &mut threads[number];
        if let Place::At(point, _) = std::mem::replace(&mut thread.place, Place::Between) {
            self.trace.push((number, point));
        }
        let go = thread.go.clone();
        drop(threads);
        go.notify_one();
    }

    fn report(&self, wrong: &str) -> String {
        let threads = self.stage.threads();
        let steps: String =
            self.trace.iter().enumerate().fold(String::new(), |text, (n, (who, point))| {
                format!("{text}  {n:4} {:12} {point}\n", threads[*who].name)
            });
        let place = |thread: &Thread| match &thread.place {
            Place::Between => "waits, or works".to_string(),
            Place::At(point, _) => format!("stops at {point}"),
            Place::Ended(_) => "has ended".to_string(),
        };
        let places: String = threads
            .iter()
            .map(|thread| format!("  {:12} {}\n", thread.name, place(thread)))
            .collect();
        format!("{wrong}\nwhere they are:\n{places}what went on from which point:\n{steps}")
    }
}
