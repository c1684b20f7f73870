//! Path patterns, expanded beneath the host's root within limits: `/var/log/*.log`, `/srv/**/access.log`.
//!
//! Components without wildcards follow links like any path. Wildcards do not descend into links: a loop of links would never
//! end, and the creator of a link may lack permission for its target.

use super::{Root, stat_at};
use crate::BuildError;
use rustix::fs::FileType;
use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Maximum number of directory entries per expansion of all patterns.
const ENTRIES_MAX: usize = 200_000;
/// Maximum depth of directories: each level takes stack and a descriptor.
const DEPTH_MAX: usize = 48;
/// Time limit of an expansion.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A pattern of host paths.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    parts: Vec<Part>,
    whole: glob::Pattern,
}

#[derive(Debug, Clone)]
enum Part {
    /// A component without wildcards.
    Name(String),
    /// A component with wildcards.
    Like(glob::Pattern),
    /// `**`: any number of directories.
    AnyDepth,
}

const MATCHING: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// Parses the setting `paths` of a collector.
pub(crate) fn patterns(collector: &'static str, paths: &[String]) -> Result<Vec<Pattern>, BuildError> {
    let wrong = |message: String| BuildError { collector, message: format!("paths: {message}") };
    paths.iter().map(|path| Pattern::new(path).map_err(wrong)).collect()
}

impl Pattern {
    /// # Errors
    /// Why the text is not a pattern of absolute paths.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("{text:?} must be absolute, as in \"/var/log/*.log\""));
        }
        if text.contains(['{', '}']) && !text.contains("[{]") {
            return Err(format!(
                "{text:?} has braces, which are not wildcards here; write a path for each alternative"
            ));
        }
        let wrong = |err: glob::PatternError| format!("{text:?} is not a pattern: {err}");
        let mut parts = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            parts.push(match part {
                "**" => Part::AnyDepth,
                ".." => return Err(format!("{text:?} contains `..`; write the resolved path")),
                part if part.contains(['*', '?', '[']) => Part::Like(glob::Pattern::new(part).map_err(wrong)?),
                part => Part::Name(part.to_owned()),
            });
        }
        // As for expansion: doubled slashes and `.` have no effect.
        let plain: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let whole = glob::Pattern::new(&format!("/{}", plain.join("/"))).map_err(wrong)?;
        match parts.last() {
            None | Some(Part::AnyDepth) => Err(format!("{text:?} names no file; end it with a name, as in \"/*.log\"")),
            Some(_) => Ok(Self { text: text.to_owned(), parts, whole }),
        }
    }

    /// The pattern as written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches a path.
    pub(crate) fn matches(&self, path: &Path) -> bool {
        self.whole.matches_with(&path.to_string_lossy(), MATCHING)
    }

    /// Whether the pattern has no wildcards.
    pub(crate) fn is_one_path(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Name(_)))
    }

    /// The directory before the first wildcard.
    pub(crate) fn base(&self) -> PathBuf {
        let names = self.parts.iter().map_while(|part| if let Part::Name(name) = part { Some(name) } else { None });
        Path::new("/").join(names.take(self.parts.len() - 1).collect::<PathBuf>())
    }

    /// The directory of the last component, unless it has wildcards.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        let (_, dirs) = self.parts.split_last()?;
        let mut path = PathBuf::from("/");
        for part in dirs {
            let Part::Name(name) = part else { return None };
            path.push(name);
        }
        Some(path)
    }
}

/// An expansion of patterns.
#[derive(Debug)]
pub(crate) struct Expansion {
    /// Remaining entries.
    entries: usize,
    since: Instant,
    /// Paths that could not be listed, with errors; a missing path is not an error.
    pub(crate) problems: Vec<(PathBuf, io::Error)>,
}

/// A path that a pattern matches: a file, a link, or another non-directory.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) path: PathBuf,
    /// Metadata of the entry; links are not followed.
    pub(crate) stat: rustix::fs::Stat,
}

impl Named {
    pub(crate) fn is_file(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::RegularFile
    }

    pub(crate) fn is_link(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Symlink
    }
}

impl Default for Expansion {
    fn default() -> Self {
        Self::with_bound(ENTRIES_MAX)
    }
}

impl Expansion {
    /// An expansion with a limit of entries.
    pub(crate) fn with_bound(entries: usize) -> Self {
        Self { entries, since: Instant::now(), problems: Vec::new() }
    }

    /// Paths that a pattern matches, sorted by name.
    pub(crate) fn expand(&mut self, root: &Root, pattern: &Pattern) -> Vec<Named> {
        let mut out = Vec::new();
        if self.descend(root, Path::new("/"), &pattern.parts, &mut out).is_none() {
            let why = format!(
                "it takes more than {ENTRIES_MAX} entries or {} s to look through; the rest is skipped; name fewer directories",
                TIME_MAX.as_secs()
            );
            self.problems.push((PathBuf::from(pattern.text()), io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        out.dedup_by(|a, b| a.path == b.path);
        out
    }

    /// Absent if a limit is reached.
    fn descend(&mut self, root: &Root, dir: &Path, parts: &[Part], out: &mut Vec<Named>) -> Option<()> {
        let Some((first, rest)) = parts.split_first() else { return Some(()) };
        if let Part::Name(name) = first {
            return if rest.is_empty() {
                self.take(root, dir, name, out)
            } else {
                self.descend(root, &dir.join(name), rest, out)
            };
        }
        if dir.components().count() > DEPTH_MAX {
            let why = format!("more than {DEPTH_MAX} directories deep; skipped");
            self.problems.push((dir.to_owned(), io::Error::new(io::ErrorKind::InvalidInput, why)));
            return Some(());
        }
        let (handle, entries) = match root.entries(dir) {
            Ok(opened) => opened,
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Some(()),
            Err(err) => {
                self.problems.push((dir.to_owned(), err));
                return Some(());
            }
        };
        if let Part::AnyDepth = first {
            self.descend(root, dir, rest, out)?;
        }
        for entry in entries.flatten() {
            self.count()?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let is_dir = match entry.file_type() {
                FileType::Unknown => stat_at(&handle, name)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                kind => kind == FileType::Directory,
            };
            match first {
                Part::AnyDepth if is_dir => self.descend(root, &dir.join(name), parts, out)?,
                Part::Like(pattern) if pattern.matches_with(&name.to_string_lossy(), MATCHING) => {
                    if rest.is_empty() && !is_dir {
                        if let Ok(stat) = stat_at(&handle, name) {
                            out.push(Named { path: dir.join(name), stat });
                        }
                    } else if is_dir && !rest.is_empty() {
                        self.descend(root, &dir.join(name), rest, out)?;
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Adds one entry of a directory.
    fn take(&mut self, root: &Root, dir: &Path, name: &str, out: &mut Vec<Named>) -> Option<()> {
        self.count()?;
        match root.stat(dir, OsStr::new(name)) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                out.push(Named { path: dir.join(name), stat });
            }
            Ok(_) => {}
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(err) => self.problems.push((dir.join(name), err)),
        }
        Some(())
    }

    fn count(&mut self) -> Option<()> {
        self.entries = self.entries.checked_sub(1)?;
        (self.since.elapsed() < TIME_MAX).then_some(())
    }
}
