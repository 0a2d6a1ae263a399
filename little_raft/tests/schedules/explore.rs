//! Which schedules are tried: some at random, or all that depart from the plain one a few times.

use crate::controller::Controller;
use crate::world::{Terms, World};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A play: its terms, and the users that it puts on the stage. Whatever it leaves to chance, it
/// takes from the numbers it is given.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) terms: fn(&mut StdRng) -> Terms,
    pub(crate) users: fn(&Controller, &mut World, &mut StdRng),
}

/// A number from the environment.
fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|number| number.parse().expect("a number"))
}

impl Scene {
    fn run(
        &self, random: &mut StdRng, choose: impl FnOnce(&mut StdRng) -> Box<Chooser>,
    ) -> Result<usize, String> {
        let (mut controller, terms) = (Controller::default(), (self.terms)(random));
        let mut world = World::new(&controller, terms);
        (self.users)(&controller, &mut world, random);
        controller.run(&world, &mut *choose(random))
    }

    /// Random schedules: as many as the environment says, or `count`.
    pub(crate) fn at_random(&self, count: usize) {
        let first = variable("LITTLE_RAFT_SCHEDULE_SEED");
        let times = variable("LITTLE_RAFT_SCHEDULES").unwrap_or(1);
        // Elsewhere nobody tells whether a thread sleeps, and finding out takes its time.
        let count =
            if cfg!(target_os = "linux") { count * times } else { (count * times).div_ceil(50) };
        let seeds = first.map_or(0..count, |seed| seed..seed + 1);
        let (began, mut steps, schedules) = (Instant::now(), 0, seeds.len());
        for seed in seeds {
            let mut random = StdRng::seed_from_u64(seed as u64);
            steps += self.run(&mut random, by_chance).unwrap_or_else(|wrong| {
                panic!(
                    "{}: seed {seed} (LITTLE_RAFT_SCHEDULE_SEED={seed} tries it again): {wrong}",
                    self.name
                )
            });
        }
        self.say("random", schedules, steps, began);
    }

    /// All schedules that depart at most so many times, or as many as the environment says, from
    /// the plain one: each thread goes on for as long as it can, and then the next in turn. To pass
    /// over two threads counts as two departures.
    pub(crate) fn exhaustively(&self, departures: usize) {
        let departures = variable("LITTLE_RAFT_DEPARTURES").unwrap_or(departures);
        let (began, mut steps, mut schedules) = (Instant::now(), 0, 0);
        let path = Arc::new(Mutex::new(Path::default()));
        let mut is_next = true;
        while is_next {
            let (shared, mut depth, mut left) = (path.clone(), 0, departures);
            let choose = move |ready: &[usize], last: Option<usize>| {
                let turn = ready.iter().position(|it| Some(*it) >= last).unwrap_or_default();
                let mut path = shared.lock().expect("nobody panics with it");
                let chosen = path.choose(depth, ready.len().min(left + 1));
                (depth, left) = (depth + 1, left - chosen);
                ready[(turn + chosen) % ready.len()]
            };
            let ran = self.run(&mut StdRng::seed_from_u64(0), |_| Box::new(choose));
            steps +=
                ran.unwrap_or_else(|wrong| panic!("{}: schedule {schedules}: {wrong}", self.name));
            schedules += 1;
            is_next = path.lock().expect("nobody panics with it").advance();
        }
        self.say(&format!("all with {departures} departures"), schedules, steps, began);
    }

    fn say(&self, which: &str, schedules: usize, steps: usize, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        let rate = schedules as f64 / seconds;
        let name = self.name;
        println!(
            "{name}, {which}: {schedules} schedules, {steps} steps, {seconds:.1} s, {rate:.0}/s"
        );
    }
}

/// For each choice so far: which it is, and how many there are. Depth first, from the left.
#[derive(Clone, Default)]
struct Path(Vec<(usize, usize)>);

impl Path {
    /// Takes the same choices as before, and the first of those that are new.
    fn choose(&mut self, depth: usize, count: usize) -> usize {
        if self.0.len() == depth {
            self.0.push((0, count));
        }
        self.0[depth].0.min(count - 1)
    }

    /// Goes on to the next path. False if that was the last.
    fn advance(&mut self) -> bool {
        while self.0.pop_if(|(chosen, count)| *chosen + 1 >= *count).is_some() {}
        self.0.last_mut().map(|(chosen, _)| *chosen += 1).is_some()
    }
}

type Chooser = dyn FnMut(&[usize], Option<usize>) -> usize;

/// Chooses at random, and stays with one thread for longer in some schedules than in others.
fn by_chance(random: &mut StdRng) -> Box<Chooser> {
    let stays = *[0.0, 0.5, 0.8, 0.95].choose(random).expect("there are some");
    let mut random = StdRng::seed_from_u64(random.random());
    Box::new(move |ready, last| match last.filter(|last| ready.contains(last)) {
        Some(last) if random.random_bool(stays) => last,
        _ => *ready.choose(&mut random).expect("somebody can go on"),
    })
}
