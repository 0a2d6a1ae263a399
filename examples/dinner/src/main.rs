//! Guests who agree on where to eat.

use clap::Parser;
use crossbeam_channel::RecvTimeoutError;
use dinner::{Broadcast, Delivery, free_addresses};
use std::io::{BufRead, Error, ErrorKind, Result, Write, stdin, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long guests in one process may take to agree; it is far less than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Guests who agree on where to eat: each names a place, all hear the same names in the same order,
/// and the first one it is. With --listen, one guest, who says what is typed, a line at a time.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How many guests to seat in this process
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    guests: u8,
    /// Where they would like to eat, one after the other
    #[arg(long, value_delimiter = ',', default_value = "noodles,pizza,curry")]
    options: Vec<String>,
    /// Seat one guest only, who listens here
    #[arg(long, value_name = "ADDR", requires_all = ["peers", "directory"],
          conflicts_with_all = ["guests", "options"])]
    listen: Option<SocketAddr>,
    /// Where the other guests listen
    #[arg(long, value_name = "ADDR,ADDR", value_delimiter = ',', requires = "listen")]
    peers: Vec<SocketAddr>,
    /// Where this guest keeps what was said
    #[arg(long, value_name = "DIR", requires = "listen")]
    directory: Option<PathBuf>,
    /// Show what goes on; RUST_LOG chooses how much
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let default = if arguments.log { "info" } else { "error" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default)).init();
    let result = match (arguments.listen, &arguments.directory) {
        (Some(own), Some(directory)) => sit_down(own, arguments.peers, directory),
        _ => seat_all(arguments.guests.into(), &arguments.options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has heard enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dinner: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Seats all guests in this process, and has them agree.
fn seat_all(count: usize, options: &[String]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let addresses = free_addresses(count)?;
    let sit = |(number, address): (usize, &SocketAddr)| {
        Broadcast::join(&addresses, *address, directory.path().join(format!("{number}")))
    };
    let guests = addresses.iter().enumerate().map(sit).collect::<Result<Vec<_>>>()?;
    for ((number, guest), option) in (1..).zip(&guests).zip(options.iter().cycle()) {
        writeln!(stdout(), "guest {number} at {} would like {option}", guest.address())?;
        guest.broadcast(option.clone().into_bytes())?;
    }
    let deadline = Instant::now() + PATIENCE;
    let listen = |guest: &Broadcast| {
        let deliveries = (0..count).map(|_| guest.deliveries().recv_deadline(deadline));
        deliveries.collect::<std::result::Result<Vec<_>, RecvTimeoutError>>()
    };
    let heard = guests.iter().map(listen).collect::<std::result::Result<Vec<_>, _>>();
    let heard = heard.map_err(|error| match error {
        RecvTimeoutError::Timeout => Error::other(format!("no agreement in {PATIENCE:?}")),
        RecvTimeoutError::Disconnected => Error::other("a guest has failed"),
    })?;
    for (number, deliveries) in (1..).zip(&heard) {
        let names = deliveries.iter().map(|delivery| {
            let from = addresses.iter().position(|it| *it == delivery.from).unwrap_or_default();
            format!("{} from guest {}", text(delivery), from + 1)
        });
        writeln!(stdout(), "guest {number} hears {}", names.collect::<Vec<_>>().join(", "))?;
    }
    guests.into_iter().try_for_each(Broadcast::leave)?;
    match heard.first().and_then(|deliveries| deliveries.first()) {
        Some(first) if heard.iter().all(|it| *it == heard[0]) => {
            writeln!(stdout(), "all agree on the first: {}", text(first))
        }
        _ => Err(Error::other("they do not agree, which is a bug")),
    }
}

/// Seats one guest: says what is typed, and prints what is heard, until the process is stopped.
fn sit_down(own: SocketAddr, mut addresses: Vec<SocketAddr>, directory: &Path) -> Result<()> {
    addresses.push(own);
    let guest = Broadcast::join(&addresses, own, directory)?;
    writeln!(stdout(), "seated at {own}, {} guests; Ctrl-C to leave", addresses.len())?;
    let say = || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if let Err(error) = guest.broadcast(line.into_bytes()) {
                eprintln!("dinner: not said: {error}");
            }
        }
        // Nobody types any more, but the others need this guest to agree on what they say.
    };
    let listen = || {
        for delivery in guest.deliveries() {
            writeln!(stdout(), "{}. {}: {}", delivery.number, delivery.from, text(&delivery))?;
        }
        Err(Error::other("the replica has failed; --log tells more"))
    };
    std::thread::scope(|scope| {
        scope.spawn(say);
        // Reading what is typed cannot be interrupted, so that the end of listening ends the process.
        match listen() {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                eprintln!("dinner: {error}");
                std::process::exit(1)
            }
            Ok(()) | Err(_) => std::process::exit(0),
        }
    })
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.message()).into_owned()
}
