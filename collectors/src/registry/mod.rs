//! The collectors of each platform. Each says of itself on which it runs.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub use linux::{ELSEWHERE, REGISTRY};
#[cfg(windows)]
pub use windows::{ELSEWHERE, REGISTRY};

#[cfg(test)]
mod tests {
    use super::REGISTRY;
    use crate::Platform;

    #[test]
    fn all_collectors_of_a_platform_say_that_they_run_on_it() {
        let here = if cfg!(windows) { Platform::Windows } else { Platform::Linux };
        for spec in REGISTRY {
            assert!(spec.platforms.contains(&here), "{} says that it runs on {:?}", spec.id, spec.platforms);
        }
    }

    /// The other platform's list is read as text, since it is not compiled here.
    #[test]
    fn what_runs_on_both_is_in_both_lists() {
        let lists = [include_str!("linux.rs"), include_str!("windows.rs")];
        let both: Vec<_> = REGISTRY.iter().filter(|spec| spec.platforms.len() > 1).map(|spec| spec.id).collect();
        assert!(both.contains(&"host"), "{both:?}");
        for (id, list) in both.iter().flat_map(|id| lists.map(|list| (id, list))) {
            assert!(list.contains(&format!("{id}::SPEC")), "{id} is missing in a list");
        }
        let other = if cfg!(windows) { lists[0] } else { lists[1] };
        for spec in REGISTRY {
            let named = format!("\"{}\"", spec.id);
            assert_eq!(other.contains(&named), spec.platforms.len() == 1, "{} in the other list's ELSEWHERE", spec.id);
        }
    }
}
