//! Looks into a file without changing it: what the database writes when it opens one, after a crash
//! above all, stays in memory.

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: u64 = 4096;

/// A file, and the pages that would have been written to it.
#[derive(Debug)]
pub(crate) struct Overlay(Mutex<Pages>);

#[derive(Debug)]
struct Pages {
    file: File,
    /// Where what the file holds counts no longer.
    file_end: u64,
    written: BTreeMap<u64, Vec<u8>>,
    length: u64,
}

impl Overlay {
    pub(crate) fn new(file: File) -> io::Result<Overlay> {
        let length = file.metadata()?.len();
        let written = BTreeMap::new();
        Ok(Overlay(Mutex::new(Pages { file, file_end: length, written, length })))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    /// A page as it would be now; beyond the file's end it is zeros.
    fn page(&mut self, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = self.written.get(&number) {
            return Ok(page.clone());
        }
        let (begin, mut page) = (number * PAGE, vec![0; PAGE as usize]);
        let held = self.file_end.saturating_sub(begin).min(PAGE) as usize;
        self.file.seek(SeekFrom::Start(begin))?;
        self.file.read_exact(&mut page[..held])?;
        Ok(page)
    }

    /// Visits the parts of a stretch of bytes, page by page: number, place in the page, length.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
        let (mut at, end) = (offset, offset + length as u64);
        std::iter::from_fn(move || {
            let (number, begin) = (at / PAGE, at % PAGE);
            let length = (PAGE - begin).min(end - at);
            at += length;
            (length > 0).then_some((number, begin as usize, length as usize))
        })
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pages().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut pages = self.pages();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > pages.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (number, begin, length) in Pages::parts(offset, out.len()) {
            let page = pages.page(number)?;
            out[done..done + length].copy_from_slice(&page[begin..begin + length]);
            done += length;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut pages = self.pages();
        (pages.length, pages.file_end) = (length, pages.file_end.min(length));
        pages.written.retain(|number, _| number * PAGE < length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut pages, mut done) = (self.pages(), 0);
        for (number, begin, length) in Pages::parts(offset, data.len()) {
            let mut page = pages.page(number)?;
            page[begin..begin + length].copy_from_slice(&data[done..done + length]);
            pages.written.insert(number, page);
            done += length;
        }
        Ok(())
    }
}
