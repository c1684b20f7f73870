//! Modules have no circles: `docs/modules.md` is drawn from the sources, and every level of every crate is acyclic.

use crate::support::root;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};
use syn::{Item, UseTree, visit::Visit};

/// Crates, by directory and root file.
const CRATES: [(&str, &str); 9] = [
    ("platform", "lib.rs"),
    ("wire", "lib.rs"),
    ("journal", "lib.rs"),
    ("collectors", "lib.rs"),
    ("transport", "lib.rs"),
    ("agent", "lib.rs"),
    ("workspace", "main.rs"),
    ("lake", "lib.rs"),
    ("packaging", "main.rs"),
];

/// Path of a module from the root of its crate.
type ModulePath = Vec<String>;

/// A module: its child modules, names that its `use` items bring in, and paths that its code names.
#[derive(Default)]
struct Module {
    uses: BTreeMap<String, Vec<String>>,
    paths: Vec<Vec<String>>,
}

type Modules = BTreeMap<ModulePath, Module>;

fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// Reads a file and the files of its modules, without those of tests.
fn read(file: &Path, dir: &Path, at: ModulePath, into: &mut Modules) {
    let text = fs::read_to_string(file).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
    let mut module = Module::default();
    for item in &parsed.items {
        match item {
            Item::Mod(child) if is_of_tests(&child.attrs) => continue,
            Item::Mod(child) if child.content.is_none() => {
                let name = child.ident.to_string();
                let (beside, below) = (dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs"));
                let file = if beside.exists() { beside } else { below };
                read(&file, &dir.join(&name), [at.clone(), vec![name]].concat(), into);
            }
            Item::Use(item) => {
                flatten(&item.tree, &mut Vec::new(), &mut module);
                continue;
            }
            _ => {}
        }
        Paths(&mut module).visit_item(item);
    }
    into.insert(at, module);
}

/// Records the paths of a `use` item, with the names that they have here.
fn flatten(tree: &UseTree, before: &mut Vec<String>, module: &mut Module) {
    let mut add = |before: &[String], last: &syn::Ident, name: &syn::Ident| {
        let mut path = before.to_vec();
        if last != "self" {
            path.push(last.to_string());
        }
        module.uses.insert(name.to_string(), path.clone());
        module.paths.push(path);
    };
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, module);
            before.pop();
        }
        UseTree::Name(name) => add(before, &name.ident, &name.ident),
        UseTree::Rename(rename) => add(before, &rename.ident, &rename.rename),
        UseTree::Glob(_) => module.paths.push(before.clone()),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, module)),
    }
}

struct Paths<'a>(&'a mut Module);

impl Visit<'_> for Paths<'_> {
    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if !is_of_tests(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        flatten(&item.tree, &mut Vec::new(), self.0);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.0.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }
}

/// The module that a path in a module leads to; absent if it leads out of the crate.
fn resolve(modules: &Modules, from: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
    let (first, rest) = path.split_first()?;
    let (mut at, mut rest) = match first.as_str() {
        "crate" => (Vec::new(), rest),
        "self" => (from.clone(), rest),
        "super" => (from[..from.len().checked_sub(1)?].to_vec(), rest),
        name if modules.contains_key(&[from.clone(), vec![name.to_owned()]].concat()) => (from.clone(), path),
        _ => return None,
    };
    while let Some((next, after)) = rest.split_first() {
        let child = [at.clone(), vec![next.clone()]].concat();
        if next == "super" {
            at.pop()?;
        } else if modules.contains_key(&child) {
            at = child;
        } else {
            // A name that the module has from elsewhere leads there.
            let used = modules.get(&at)?.uses.get(next).filter(|_| depth < 8);
            return used.and_then(|used| resolve(modules, &at, used, depth + 1)).or(Some(at));
        }
        rest = after;
    }
    Some(at)
}

/// Arrows between the children of each module: parent, child, and the child that it uses.
fn arrows(modules: &Modules) -> BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> {
    let mut out: BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (from, module) in modules {
        if let Some((name, parent)) = from.split_last() {
            out.entry(parent.to_vec()).or_default().entry(name.clone()).or_default();
        }
        for to in module.paths.iter().filter_map(|path| resolve(modules, from, path, 0)) {
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(one), Some(other)) = (from.get(common), to.get(common)) {
                let children = out.entry(from[..common].to_vec()).or_default();
                children.entry(one.clone()).or_default().insert(other.clone());
            }
        }
    }
    out
}

/// A circle among arrows, as the names on it.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk<'a>(
        arrows: &'a BTreeMap<String, BTreeSet<String>>,
        at: &'a str,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = path.iter().position(|name| *name == at) {
            return Some(path[begin..].iter().map(|name| (*name).to_owned()).collect());
        }
        if !done.insert(at) {
            return None;
        }
        path.push(at);
        let found = arrows.get(at).into_iter().flatten().find_map(|next| walk(arrows, next, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|name| walk(arrows, name, &mut Vec::new(), &mut done))
}

fn modules_of(package: &str, file: &str) -> Modules {
    let (mut modules, dir) = (Modules::new(), root().join(package).join("src"));
    read(&dir.join(file), &dir, Vec::new(), &mut modules);
    modules
}

fn page() -> String {
    let mut out = "# Modules\n\nDrawn from the sources by `cargo test --workspace modules`. An arrow means \"uses\".\n"
        .to_owned();
    for (package, file) in CRATES {
        let arrows = arrows(&modules_of(package, file));
        let _ = write!(out, "\n## {package}\n\n```mermaid\nflowchart TD\n");
        for (from, to) in arrows.get(&ModulePath::new()).into_iter().flatten() {
            let _ = writeln!(out, "    {from}");
            for to in to {
                let _ = writeln!(out, "    {from} --> {to}");
            }
        }
        out.push_str("```\n");
    }
    out
}

#[test]
fn no_modules_form_a_circle() {
    let mut circles = Vec::new();
    for (package, file) in CRATES {
        for (parent, arrows) in arrows(&modules_of(package, file)) {
            if let Some(circle) = circle(&arrows) {
                circles.push(format!("{package}::{}: {}", parent.join("::"), circle.join(" -> ")));
            }
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn the_drawing_of_the_modules_is_up_to_date() {
    let drawn = Path::new(env!("CARGO_TARGET_TMPDIR")).join("modules.md");
    let page = page();
    fs::write(&drawn, &page).expect("writes");
    let committed = fs::read_to_string(root().join("docs/modules.md")).unwrap_or_default();
    assert!(committed == page, "docs/modules.md is stale: cp {} docs/modules.md", drawn.display());
}

/// Modules of the workspace that know HTTP, and those that know SQL.
#[test]
fn the_layers_of_the_workspace_hold() {
    let dir = root().join("workspace/src");
    for (layers, words) in [
        (
            &["api", "server", "ingest", "replication", "tables", "commands", "keys"][..],
            &["sqlx", "SELECT ", "INSERT "][..],
        ),
        (&["ingest", "store", "tables", "keys"][..], &["axum", "hyper::", "StatusCode"][..]),
    ] {
        for layer in layers {
            let mut dirs = vec![dir.join(layer)];
            assert!(dirs[0].is_dir(), "{layer} is a layer");
            while let Some(dir) = dirs.pop() {
                for path in fs::read_dir(&dir).expect("lists").map(|entry| entry.expect("an entry").path()) {
                    if path.is_dir() {
                        dirs.push(path);
                        continue;
                    }
                    let text = fs::read_to_string(&path).expect("reads");
                    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                    for word in words {
                        assert!(!code.contains(word), "{}: {word}", path.display());
                    }
                }
            }
        }
    }
}

/// A handler that forgets authentication does not compile: the state of the router is private to the extractors, and none of
/// them goes without. This finds one that would use another door.
#[test]
fn handlers_reach_the_workspace_through_authentication_alone() {
    let dir = root().join("workspace/src/api");
    let text = |path: &str| fs::read_to_string(dir.join(path)).unwrap_or_else(|err| panic!("{path}: {err}"));
    assert!(text("extract/mod.rs").contains("pub(super) struct Gate(Arc<Api>);"), "its field is private");
    let mut handlers = 0;
    for path in fs::read_dir(dir.join("v1")).expect("lists").map(|entry| entry.expect("an entry").path()) {
        let code = fs::read_to_string(&path).expect("reads");
        assert!(!code.contains("State<") && !code.contains("Extension<"), "{}", path.display());
        for signature in code.split("pub(in crate::api) async fn ").skip(1) {
            let arguments = signature.split("->").next().unwrap_or_default();
            let extractors = ["AuthenticatedAgent", "PacedAgent", "PairPeer", "TokenHolder<"];
            assert!(extractors.iter().any(|name| arguments.contains(name)), "{}: {arguments}", path.display());
            handlers += 1;
        }
    }
    assert!(handlers >= 9, "{handlers}");
}

/// As in docs/ARCHITECTURE.md, from the top.
#[test]
fn a_layer_of_the_workspace_uses_those_below_it() {
    let order = [
        "commands",
        "server",
        "api",
        "replication",
        "tables",
        "ingest",
        "store",
        "keys",
        "batch_index",
        "metrics",
        "health",
        "clock",
    ];
    let arrows = arrows(&modules_of("workspace", "main.rs"));
    let arrows = &arrows[&ModulePath::new()];
    assert_eq!(arrows.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(order));
    let at = |name: &str| order.iter().position(|layer| *layer == name).expect("is a layer");
    for (from, to) in arrows.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
        assert!(at(from) < at(to), "{from} -> {to}");
    }
}

/// Attributes inside functions that ask for the operating system.
#[derive(Default)]
struct Conditions {
    depth: usize,
    found: usize,
}

impl Visit<'_> for Conditions {
    fn visit_block(&mut self, block: &syn::Block) {
        self.depth += 1;
        syn::visit::visit_block(self, block);
        self.depth -= 1;
    }

    fn visit_attribute(&mut self, attribute: &syn::Attribute) {
        let asks = |list: &syn::MetaList| {
            let condition = list.tokens.to_string();
            ["windows", "unix", "target_os"].iter().any(|name| condition.contains(name))
        };
        let is_condition = attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr");
        let asks = matches!(&attribute.meta, syn::Meta::List(list) if asks(list));
        self.found += usize::from(self.depth > 0 && is_condition && asks);
    }
}

fn conditions(text: &str) -> usize {
    let mut conditions = Conditions::default();
    conditions.visit_file(&syn::parse_file(text).expect("parses"));
    conditions.found
}

#[test]
fn no_function_asks_for_the_operating_system() {
    let inside = "fn f() { #[cfg(windows)] let x = 1; match 1 { #[cfg(not(target_os = \"linux\"))] _ => {} } }";
    assert_eq!((conditions(inside), conditions("#[cfg(windows)] fn f() {}")), (2, 0), "the check finds them");
    let mut dirs: Vec<_> = CRATES.map(|(package, _)| root().join(package).join("src")).into();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("lists").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("reads");
                assert_eq!(conditions(&text), 0, "{}", path.display());
            }
        }
    }
}

#[test]
fn a_circle_is_found() {
    let arrows = |pairs: &[(&str, &str)]| {
        let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            out.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        out
    };
    assert_eq!(circle(&arrows(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    assert_eq!(circle(&arrows(&[("a", "b"), ("b", "c"), ("c", "b")])), Some(vec!["b".to_owned(), "c".to_owned()]));
}
