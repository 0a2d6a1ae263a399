//! Which faults a run has: drawn anew for every seed, so that each run has some of them in strength
//! rather than all of them a little (swarm testing).

use crate::{DiskFault, Random};
use rand::RngExt;
use std::time::Duration;

/// A chance in a million.
pub type PerMillion = u32;

/// What happens to a simulated cluster, and how often. A mean interval of `None` means never.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Faults {
    /// The first voters; the replicas 0 to `voters - 1`.
    pub voters: usize,
    /// Replicas that wait to be added.
    pub joining: usize,
    /// How long faults last before the cluster is left to settle.
    pub duration: Duration,
    pub heartbeat_timeout: Duration,
    pub election_timeout_range: (Duration, Duration),
    pub snapshot_delta: usize,
    /// Lease reads, for clocks that drift apart by at most this.
    pub max_clock_drift: Option<Duration>,
    /// Least and mean further delay of a message.
    pub delay: (Duration, Duration),
    pub lost: PerMillion,
    pub duplicated: PerMillion,
    /// Messages that arrive seconds later.
    pub late: PerMillion,
    /// Clocks run faster or slower by at most this.
    pub clock_skew: PerMillion,
    pub crashes: Option<Duration>,
    /// How long a crashed replica is down, on average.
    pub downtime: Duration,
    /// Saves that fail.
    pub disk_errors: Option<Duration>,
    /// The ways in which they fail; one of them is chosen each time.
    pub disk_faults: Vec<DiskFault>,
    /// Saves that take long, or never end.
    pub stalls: Option<Duration>,
    /// Starts that find a flipped bit in what was saved.
    pub rot: PerMillion,
    pub cuts: Option<Duration>,
    pub one_way_cuts: bool,
    pub pauses: Option<Duration>,
    pub jumps: Option<Duration>,
    pub membership_changes: Option<Duration>,
    pub transfers: Option<Duration>,
    /// Between two acts of clients.
    pub clients: Duration,
    pub reads: PerMillion,
    /// Transitions that are proposed together at most.
    pub batch: usize,
    /// Committed transitions that are applied in one turn at most.
    pub applied_at_once: usize,
    /// How long a replica leaves messages unread on average, so that many come in one turn.
    pub idleness: Duration,
    /// In the end the faults do not stop: replicas stay dead and links stay cut, as long as a
    /// quorum is connected.
    pub standing: bool,
}

impl Faults {
    /// None at all.
    pub fn none(voters: usize) -> Faults {
        let milliseconds = Duration::from_millis;
        Faults {
            voters,
            joining: 0,
            duration: milliseconds(20_000),
            heartbeat_timeout: milliseconds(50),
            election_timeout_range: (milliseconds(200), milliseconds(400)),
            snapshot_delta: 0,
            max_clock_drift: None,
            delay: (milliseconds(1), milliseconds(3)),
            lost: 0,
            duplicated: 0,
            late: 0,
            clock_skew: 0,
            crashes: None,
            downtime: milliseconds(500),
            disk_errors: None,
            disk_faults: Vec::new(),
            stalls: None,
            rot: 0,
            cuts: None,
            one_way_cuts: false,
            pauses: None,
            jumps: None,
            membership_changes: None,
            transfers: None,
            clients: milliseconds(40),
            reads: 300_000,
            batch: 3,
            applied_at_once: 1_000,
            idleness: Duration::ZERO,
            standing: false,
        }
    }

    /// Draws the faults of a run.
    pub fn draw(random: &mut Random) -> Faults {
        let mut faults = Faults::none([1, 2, 3, 3, 3, 3, 4, 5, 5, 7][random.random_range(0..10)]);
        faults.draw_setting(random);
        faults.draw_network(random);
        faults.draw_replicas(random);
        faults.draw_requests(random);
        faults
    }

    fn draw_setting(&mut self, random: &mut Random) {
        self.joining = random.random_range(0..3);
        self.duration = Duration::from_millis(random.random_range(2_000..30_000));
        if random.random_ratio(2, 3) {
            self.snapshot_delta = random.random_range(1..30);
        }
        if random.random_ratio(1, 3) {
            // Timeouts that leave no room for luck.
            let heartbeat = random.random_range(20..150);
            let least = random.random_range(heartbeat * 2..heartbeat * 5);
            let greatest = random.random_range(least * 3 / 2..least * 3);
            self.heartbeat_timeout = Duration::from_millis(heartbeat);
            self.election_timeout_range =
                (Duration::from_millis(least), Duration::from_millis(greatest));
        }
        if random.random_ratio(1, 3) {
            self.max_clock_drift =
                Some(self.election_timeout_range.0 * random.random_range(1..60) / 100);
        }
        self.standing = random.random_ratio(1, 3);
        self.applied_at_once = [1, 3, 1_000][random.random_range(0..3)];
        if random.random_ratio(1, 2) {
            self.idleness = Duration::from_micros(random.random_range(500..20_000));
        }
    }

    fn draw_network(&mut self, random: &mut Random) {
        let mean = [500, 2_000, 10_000, 40_000][random.random_range(0..4)];
        self.delay.1 = Duration::from_micros(mean);
        let mut some = |most: u32| {
            if random.random_ratio(1, 2) { random.random_range(0..most) } else { 0 }
        };
        self.lost = some(300_000);
        self.duplicated = some(200_000);
        self.late = some(20_000);
        self.cuts = every(random, 1, 2, 200..3_000);
        self.one_way_cuts = random.random_ratio(1, 2);
    }

    fn draw_replicas(&mut self, random: &mut Random) {
        self.crashes = every(random, 2, 3, 100..3_000);
        self.downtime = Duration::from_millis(random.random_range(1..1_500));
        self.draw_disks(random);
        self.pauses = every(random, 1, 3, 200..3_000);
        match self.max_clock_drift {
            // Within the bound that leases count on: one clock faster, one slower, for a timeout.
            Some(drift) if random.random_ratio(2, 3) => {
                let part = drift.as_secs_f64() / self.election_timeout_range.1.as_secs_f64();
                self.clock_skew = (part * 450_000.0) as PerMillion;
            }
            Some(_) => {}
            None => {
                self.jumps = every(random, 1, 3, 200..3_000);
                self.clock_skew =
                    if random.random_ratio(1, 2) { random.random_range(0..500_000) } else { 0 };
            }
        }
    }

    fn draw_disks(&mut self, random: &mut Random) {
        self.disk_errors = every(random, 1, 3, 200..4_000);
        // Some kinds of failures and not others; the same kind in several shapes.
        let kinds: [bool; 5] = random.random();
        for kind in (0..5).filter(|kind| kinds[*kind]) {
            for _ in 0..3 {
                self.disk_faults.push(match kind {
                    0 => DiskFault::CrashAt(random.random_range(0..250)),
                    1 => DiskFault::Reordered(random.random()),
                    2 => DiskFault::Fails,
                    3 => DiskFault::FailsAfterAll,
                    _ => DiskFault::Full(random.random_range(1..6)),
                });
            }
        }
        self.stalls = every(random, 1, 4, 300..5_000);
        self.rot = if random.random_ratio(1, 4) { random.random_range(0..500_000) } else { 0 };
    }

    fn draw_requests(&mut self, random: &mut Random) {
        self.membership_changes = every(random, 1, 2, 100..4_000);
        self.transfers = every(random, 1, 2, 200..4_000);
        self.clients = Duration::from_millis(random.random_range(2..120));
        self.reads = random.random_range(0..700_000);
        self.batch = [1, 3, 20][random.random_range(0..3)];
    }
}

/// With a chance, a mean interval of so many milliseconds.
fn every(
    random: &mut Random, numerator: u32, denominator: u32, range: std::ops::Range<u64>,
) -> Option<Duration> {
    let chosen = random.random_ratio(numerator, denominator);
    chosen.then(|| Duration::from_millis(random.random_range(range)))
}
