//! What a batch covers of its sources: the tiles that the ledger lays side by side.

use std::collections::BTreeMap;
use vedette_wire::{Batch, Header, Position};

/// Positions of one source, one behind the other without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) collector: String,
    pub(crate) source: String,
    /// Of each record, in order.
    pub(crate) positions: Vec<Position>,
}

impl Tile {
    /// Where it begins.
    pub(crate) fn start(&self) -> u64 {
        self.positions.first().map_or(0, |position| position.0)
    }

    /// Just behind its last record.
    pub(crate) fn reached(&self) -> u64 {
        self.positions.last().map_or(0, |position| position.1)
    }
}

/// A landed batch as the ledger sees it.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) header: Header,
    pub(crate) tiles: Vec<Tile>,
}

impl Noted {
    /// Records by collector.
    pub(crate) fn records(&self) -> BTreeMap<&str, u64> {
        let mut out = BTreeMap::new();
        for tile in &self.tiles {
            *out.entry(tile.collector.as_str()).or_default() += tile.positions.len() as u64;
        }
        out
    }
}

impl From<Batch> for Noted {
    fn from(batch: Batch) -> Self {
        let sources = &batch.header.sources;
        let mut tiles: Vec<Tile> = Vec::new();
        // The tile of each source that is being laid.
        let mut open: BTreeMap<u32, usize> = BTreeMap::new();
        for record in &batch.records {
            let last = open.get(&record.source).copied();
            match last.filter(|last| tiles[*last].reached() == record.position.0) {
                Some(last) => tiles[last].positions.push(record.position),
                None => {
                    let source = sources.get(record.source as usize);
                    open.insert(record.source, tiles.len());
                    tiles.push(Tile {
                        collector: source.map_or_else(|| "unknown".to_owned(), |source| source.collector.clone()),
                        source: source.map_or_else(String::new, |source| source.id.clone()),
                        positions: vec![record.position],
                    });
                }
            }
        }
        Self { header: batch.header, tiles }
    }
}
