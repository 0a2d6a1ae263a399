//! Whatever happens to the files: what was saved is there, all of it, or the start is refused with
//! an error that says what to do. Never a panic, never silent loss.

mod common;

use common::*;
use little_raft::Storage;
use little_raft_redb::RedbStorage;
use little_raft_sim::append;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use tempfile::TempDir;

const DATABASE: &str = "replica.redb";
const MARKER: &str = "acknowledged";

/// The files of a directory, and what was saved in it.
struct Image {
    database: Vec<u8>,
    marker: Vec<u8>,
    saved: Saved,
}

impl Image {
    /// What is left when everything was closed.
    fn closed() -> Image {
        let directory = tempfile::tempdir().expect("a directory");
        let saved = furnish(&mut RedbStorage::open(directory.path()).expect("opened"));
        Image::read(directory.path(), saved)
    }

    /// What is left by a process that was killed right after its last save.
    fn killed() -> Image {
        let directory = tempfile::tempdir().expect("a directory");
        let mut storage = RedbStorage::open(directory.path()).expect("opened");
        let saved = furnish(&mut storage);
        Image::read(directory.path(), saved)
    }

    fn read(directory: &Path, saved: Saved) -> Image {
        let read = |name| fs::read(directory.join(name)).expect("read");
        Image { database: read(DATABASE), marker: read(MARKER), saved: flat(saved) }
    }

    /// Writes the files, some of them changed.
    fn write(&self, database: &[u8], marker: &[u8]) -> TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(DATABASE), database).expect("written");
        fs::write(directory.path().join(MARKER), marker).expect("written");
        directory
    }

    /// Whether the damage is found. If it is, the error says so, twice; if not, nothing is missing.
    fn is_found(&self, what: &str, database: &[u8], marker: &[u8]) -> bool {
        let directory = self.write(database, marker);
        let inspected = little_raft_redb::inspect(directory.path());
        for attempt in 0..2 {
            match load(directory.path()) {
                Ok(loaded) => {
                    assert_eq!(flat(loaded), self.saved, "{what}, attempt {attempt}");
                    let inspection = inspected.expect("what can be loaded can be inspected");
                    assert!(inspection.saves >= inspection.acknowledged, "{what}");
                    return false;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert_eq!(error.kind(), ErrorKind::InvalidData, "{what}: {text}");
                    assert!(text.contains("change_membership"), "{what}: {text}");
                    assert!(text.contains(DATABASE) || text.contains(MARKER), "{what}: {text}");
                }
            }
        }
        true
    }
}

#[test]
fn undamaged_files_are_opened() {
    for image in [Image::closed(), Image::killed()] {
        assert!(!image.is_found("nothing", &image.database, &image.marker));
    }
}

#[test]
fn a_cut_file_is_refused() {
    for image in [Image::closed(), Image::killed()] {
        let length = image.database.len();
        let lengths = (0..length).step_by(4096 * 7 + 1).chain((0..length).step_by(4096 * 5));
        let near_the_ends = [1, 63, 511, 512, length - 1, length - 511, length - 512];
        for cut in lengths.chain(near_the_ends) {
            let found =
                image.is_found(&format!("cut at {cut}"), &image.database[..cut], &image.marker);
            assert!(found || cut > length / 2, "cut at {cut} of {length}");
        }
    }
}

#[test]
fn a_file_with_something_behind_it_loses_nothing() {
    for image in [Image::closed(), Image::killed()] {
        for more in [1, 512, 4096, 100_000] {
            let database = [&image.database[..], &vec![0x55; more]].concat();
            image.is_found(&format!("{more} bytes more"), &database, &image.marker);
        }
    }
}

#[test]
fn a_flipped_bit_in_any_page_is_found_or_harmless() {
    for image in [Image::closed(), Image::killed()] {
        let (mut numbers, mut found, mut tried) = (Numbers::new(7), 0, 0);
        let flips = repetitions("LITTLE_RAFT_FLIPS", 1);
        for page in 0..image.database.len() / 4096 {
            // The first page holds the header, most of which matters.
            for _ in 0..if page == 0 { 40 } else { flips } {
                let byte = page * 4096 + numbers.below(if page == 0 { 320 } else { 4096 });
                let bit = numbers.below(8);
                let mut database = image.database.clone();
                database[byte] ^= 1 << bit;
                let what = format!("bit {bit} of byte {byte}");
                found += usize::from(image.is_found(&what, &database, &image.marker));
                tried += 1;
            }
        }
        println!("{found} of {tried} flipped bits found, the others were not in what was saved");
        assert!(found * 10 > tried, "{found} of {tried}");
    }
}

/// A flipped bit in an entry cannot be harmless.
#[test]
fn a_flipped_bit_in_an_entry_is_found() {
    let image = Image::killed();
    let newest = Command::new(236, 50).bytes;
    let places = image.database.windows(newest.len());
    let places: Vec<_> = places.enumerate().filter(|(_, bytes)| *bytes == newest).collect();
    assert!(!places.is_empty(), "the last entry is in the file");
    let mut database = image.database.clone();
    for (place, _) in &places {
        database[place + 20] ^= 4;
    }
    assert!(image.is_found("the last entry", &database, &image.marker));
}

#[test]
fn zeroed_sectors_are_found_or_harmless() {
    for image in [Image::closed(), Image::killed()] {
        let (sectors, mut found) = (image.database.len() / 512, 0);
        let step = repetitions("LITTLE_RAFT_SECTOR_STEP", 23);
        for sector in (0..sectors).step_by(step) {
            let mut database = image.database.clone();
            database[sector * 512..][..512].fill(0);
            let what = format!("sector {sector} of {sectors}");
            found += usize::from(image.is_found(&what, &database, &image.marker));
        }
        assert!(found * 12 * step > sectors, "{found} of {sectors}");
    }
}

/// A power cut in the middle of a save: any part of what it wrote may have reached the disk, in any
/// order. Before it or after it, nothing in between.
#[test]
fn a_power_cut_leaves_a_save_or_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    let mut model = furnish(&mut storage);
    let (mut numbers, mut outcomes) = (Numbers::new(3), [0, 0]);
    for save in 0..6 {
        let before = Image::read(directory.path(), model.clone());
        let runs = vec![run(237 + save * 40, 9, 40, 300 * save)];
        let change = little_raft::Change { compacted: id(1, 30), ..appending(9, runs) };
        append(&mut model, change.clone());
        storage.save(change).expect("saved");
        let after = Image::read(directory.path(), model.clone());
        for cut in 0..repetitions("LITTLE_RAFT_POWER_CUTS", 16) {
            // From a sector or two to almost everything.
            let lost = [2, 10, 50, 100, 300, 600, 900, 999][cut % 8];
            let mut database = after.database.clone();
            if cut % 16 > 12 {
                database.truncate(before.database.len());
            }
            let both = database.len().min(before.database.len());
            for sector in (0..database.len()).step_by(512) {
                let end = (sector + 512).min(database.len());
                if numbers.below(1000) >= lost {
                    continue;
                }
                match end <= both {
                    true => database[sector..end].copy_from_slice(&before.database[sector..end]),
                    false => database[sector..end].fill(0),
                }
            }
            let directory = before.write(&database, &before.marker);
            let loaded = flat(load(directory.path()).expect("a power cut is no damage"));
            assert!(loaded == before.saved || loaded == after.saved, "save {save}, cut {cut}");
            outcomes[usize::from(loaded == after.saved)] += 1;
        }
    }
    println!("{} rolled back, {} kept", outcomes[0], outcomes[1]);
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

/// The database alone cannot tell this from an unfinished save.
#[test]
fn an_older_database_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut storage = RedbStorage::open(directory.path()).expect("opened");
    let saved = furnish(&mut storage);
    let older = Image::read(directory.path(), saved);
    let change = little_raft::Change { compacted: id(1, 30), ..appending(9, vec![]) };
    storage.save(change).expect("saved");
    let newer = fs::read(directory.path().join(MARKER)).expect("read");
    let copy = older.write(&older.database, &newer);
    let inspection = little_raft_redb::inspect(copy.path()).expect("readable");
    assert_eq!(inspection.acknowledged, inspection.saves + 1);
    assert!(inspection.to_string().contains("LOST"), "{inspection}");
    let error = load(copy.path()).expect_err("refused").to_string();
    assert!(error.contains("save 16 was acknowledged"), "{error}");
}

#[test]
fn a_damaged_or_missing_marker_is_refused() {
    let image = Image::killed();
    for byte in 0..image.marker.len() {
        let mut marker = image.marker.clone();
        marker[byte] ^= 0x10;
        assert!(image.is_found(&format!("byte {byte} of the marker"), &image.database, &marker));
        assert!(image.is_found("a cut marker", &image.database, &image.marker[..byte]));
    }
    let directory = image.write(&image.database, &image.marker);
    fs::remove_file(directory.path().join(MARKER)).expect("removed");
    let error = load(directory.path()).expect_err("refused").to_string();
    assert!(error.contains("acknowledged is missing"), "{error}");
}

#[test]
fn a_missing_database_is_refused() {
    let image = Image::killed();
    let directory = image.write(&image.database, &image.marker);
    fs::remove_file(directory.path().join(DATABASE)).expect("removed");
    let error = load(directory.path()).expect_err("refused").to_string();
    assert!(error.contains("replica.redb is missing"), "{error}");
    assert!(little_raft_redb::inspect(directory.path()).is_err());
}

#[test]
fn a_crash_while_creating_is_made_good() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(RedbStorage::open(directory.path()).expect("opened"));
    let mut creating = fs::read(directory.path().join(MARKER)).expect("read");
    creating[12] = 0;
    let end = creating.len() - 4;
    let sum = crc32fast::hash(&creating[..end]);
    creating[end..].copy_from_slice(&sum.to_le_bytes());
    for length in [0, 1, 4096, 10_000] {
        fs::write(directory.path().join(MARKER), &creating).expect("written");
        fs::write(directory.path().join(DATABASE), vec![1; length]).expect("written");
        assert_eq!(load(directory.path()).expect("created again"), Saved::default());
    }
    fs::write(directory.path().join(MARKER), b"").expect("written");
    fs::remove_file(directory.path().join(DATABASE)).expect("removed");
    assert_eq!(load(directory.path()).expect("created again"), Saved::default());
}
