//! Skips what was written to files while the collector was switched off by policy.

use super::{
    Cursor, File, LineParser, PASSED_OVER, SCANNED, Tailer, follow::resume, passed_over, rotation::key, unpacked,
};
use crate::{CollectError, CollectorContext, Outlet, root::glob::Expansion};
use std::collections::BTreeMap;
use vedette_wire::Chunk;

impl<P: LineParser> Tailer<P> {
    /// Moves the cursors of all files to their ends; counts one dropped record for each, as the number of lines is unknown.
    /// Files that cannot be seen now are forgotten. Once they are back, those created before now start at their end and are counted.
    pub(crate) fn skip(&mut self, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
        let at = Self::place(context, outlet)?;
        let mut known: BTreeMap<String, Cursor> = context
            .cursors
            .iter()
            .filter_map(|(id, bytes)| Cursor::decode(id, bytes, &[]))
            .map(|c| (c.id(), c))
            .collect();
        let (now, mut expansion) = (context.now(), Expansion::default());
        for pattern in &self.patterns {
            for named in expansion.expand(&at.root, pattern) {
                if unpacked::is_compressed(&named.path) {
                    continue;
                }
                let Ok(found) = at.root.log(&named.path) else { continue };
                let key = key(found.meta());
                let is_of = |c: &&Cursor| c.key() == key || c.inode == key.1 && c.host_path() == named.path;
                let here: Vec<Cursor> = known.values().filter(is_of).cloned().collect();
                let mut file = match resume(&found, &here) {
                    Ok(Some((file, id))) => {
                        known.remove(&id);
                        file
                    }
                    _ => match File::open(&found, 0, now) {
                        Ok(file) => file,
                        Err(_) => continue,
                    },
                };
                let path = named.path.display().to_string();
                let dropped = file.skip().map_err(|err| CollectError::read(path, err))?;
                let cursor = file.cursor(&named.path, now);
                let mut chunk = Chunk::new(self.source(&cursor.id(), Some(&named.path)));
                chunk.dropped.extend(dropped.map(passed_over));
                chunk.cursor = Some(cursor.encode());
                outlet.emit(chunk)?;
            }
        }
        let globs: Vec<&str> = self.patterns.iter().map(|pattern| pattern.text()).collect();
        let mut scanned = Chunk::new(self.source(SCANNED, None));
        scanned.forget = known.into_keys().collect();
        scanned.cursor = Some(rmp_serde::to_vec(&globs).expect("strings serialize"));
        outlet.emit(scanned)?;
        let mut since = Chunk::new(self.source(PASSED_OVER, None));
        since.cursor = Some(now.to_be_bytes().to_vec());
        outlet.emit(since)
    }
}
