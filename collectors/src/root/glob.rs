//! Patterns of paths, expanded beneath the host's root within bounds: `/var/log/*.log`, `/srv/**/access.log`.
//!
//! Parts without wildcards are followed through links as any path is. Wildcards do not descend links: two that loop
//! would never end, and a link is an invitation that whoever made it may not be entitled to.

use super::{Root, stat_at};
use rustix::fs::FileType;
use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Directory entries that one expansion looks at, all patterns together.
const ENTRIES_MAX: usize = 200_000;
/// Directories that a path is deep: each takes stack and a descriptor while it is looked through.
const DEPTH_MAX: usize = 48;
/// Wall clock of one expansion.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A pattern of paths of the host.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    parts: Vec<Part>,
    whole: glob::Pattern,
}

#[derive(Debug, Clone)]
enum Part {
    /// A name without wildcards.
    Name(String),
    /// A name with wildcards.
    Like(glob::Pattern),
    /// `**`: any number of directories.
    AnyDepth,
}

const MATCHING: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

impl Pattern {
    /// # Errors
    /// Why it is no pattern of an absolute path.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("{text:?} must be absolute, as in \"/var/log/*.log\""));
        }
        if text.contains(['{', '}']) && !text.contains("[{]") {
            return Err(format!("{text:?} has braces, which are no wildcard here; write a path for each alternative"));
        }
        let wrong = |err: glob::PatternError| format!("{text:?} is no pattern: {err}");
        let mut parts = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            parts.push(match part {
                "**" => Part::AnyDepth,
                ".." => return Err(format!("{text:?} leads upwards; write the path as it is")),
                part if part.contains(['*', '?', '[']) => Part::Like(glob::Pattern::new(part).map_err(wrong)?),
                part => Part::Name(part.to_owned()),
            });
        }
        // As it is expanded: doubled slashes and `.` name nothing.
        let plain: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let whole = glob::Pattern::new(&format!("/{}", plain.join("/"))).map_err(wrong)?;
        match parts.last() {
            None | Some(Part::AnyDepth) => Err(format!("{text:?} names no file; end it with a name, as in \"/*.log\"")),
            Some(_) => Ok(Self { text: text.to_owned(), parts, whole }),
        }
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path is one of those that it names.
    pub(crate) fn matches(&self, path: &Path) -> bool {
        self.whole.matches_with(&path.to_string_lossy(), MATCHING)
    }

    /// Whether it names one path.
    pub(crate) fn is_one_path(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Name(_)))
    }

    /// The directory below which it names files: its parts before the first wildcard.
    pub(crate) fn base(&self) -> PathBuf {
        let names = self.parts.iter().map_while(|part| if let Part::Name(name) = part { Some(name) } else { None });
        Path::new("/").join(names.take(self.parts.len() - 1).collect::<PathBuf>())
    }

    /// The directory that its last part is in, where that is one.
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
    /// Entries that may still be looked at.
    entries: usize,
    since: Instant,
    /// What could not be listed, and why; a path that is not there is no trouble.
    pub(crate) troubles: Vec<(PathBuf, io::Error)>,
}

/// A path that a pattern names: a file, a link, or what else is no directory.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) path: PathBuf,
    /// Of the entry itself; a link is not followed.
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
    /// An expansion that looks at so many entries at the most.
    pub(crate) fn with_bound(entries: usize) -> Self {
        Self { entries, since: Instant::now(), troubles: Vec::new() }
    }

    /// What a pattern names, in the order of names.
    pub(crate) fn expand(&mut self, root: &Root, pattern: &Pattern) -> Vec<Named> {
        let mut out = Vec::new();
        if self.descend(root, Path::new("/"), &pattern.parts, &mut out).is_none() {
            let why = format!(
                "it takes more than {ENTRIES_MAX} entries or {} s to look through; the rest is left out: name fewer directories",
                TIME_MAX.as_secs()
            );
            self.troubles.push((PathBuf::from(pattern.text()), io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        out.dedup_by(|a, b| a.path == b.path);
        out
    }

    /// Absent where a bound is reached.
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
            let why = format!("more than {DEPTH_MAX} directories deep; it is left out");
            self.troubles.push((dir.to_owned(), io::Error::new(io::ErrorKind::InvalidInput, why)));
            return Some(());
        }
        let (handle, entries) = match root.entries(dir) {
            Ok(opened) => opened,
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Some(()),
            Err(err) => {
                self.troubles.push((dir.to_owned(), err));
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

    /// One name in a directory.
    fn take(&mut self, root: &Root, dir: &Path, name: &str, out: &mut Vec<Named>) -> Option<()> {
        self.count()?;
        match root.stat(dir, OsStr::new(name)) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                out.push(Named { path: dir.join(name), stat });
            }
            Ok(_) => {}
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(err) => self.troubles.push((dir.join(name), err)),
        }
        Some(())
    }

    fn count(&mut self) -> Option<()> {
        self.entries = self.entries.checked_sub(1)?;
        (self.since.elapsed() < TIME_MAX).then_some(())
    }
}
