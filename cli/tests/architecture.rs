//! ARCHITECTURE.md says which crate may use which; cargo says which does. Both must say the same.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::binary::root;

type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn crate_edges_are_those_of_the_document() {
    let document = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert_eq!(written(&document), actual());
}

/// The lines `crate -> dep, dep` of the block that opens with ```edges.
fn written(document: &str) -> Edges {
    let block = document.split("```edges\n").nth(1).expect("ARCHITECTURE.md has a block of edges");
    let lines = block.lines().take_while(|line| !line.starts_with("```"));
    lines
        .map(|line| {
            let (name, uses) = line.split_once("->").expect("a line reads `crate -> dep, dep`");
            let uses = uses.split(',').map(str::trim).filter(|u| !u.is_empty()).map(str::to_owned);
            (name.trim().to_owned(), uses.collect())
        })
        .collect()
}

/// What ships: dev-dependencies are not edges.
fn actual() -> Edges {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let uses = |package: &cargo_metadata::Package| {
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        normal.map(|d| d.name.clone()).filter(|name| ours.contains(name)).collect()
    };
    metadata.packages.iter().map(|p| (p.name.to_string(), uses(p))).collect()
}

#[test]
fn the_block_reads_as_written() {
    let edges = written("text\n```edges\na ->\nb -> a, c\n```\nd -> e\n");
    assert_eq!(format!("{edges:?}"), r#"{"a": {}, "b": {"a", "c"}}"#);
}
