//! Keys at rest: wrapped, replaced whole, and gone when they are said to be.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use base::{Generation, NamespaceId, NamespaceKey};
use quire_transfer::{DataKey, KeyStore, KeyWrap, NodeKey, StoredNamespace};

fn node(dir: &Path) -> Arc<dyn KeyWrap> {
    Arc::new(NodeKey::load_or_create(&dir.join("node.key")).unwrap())
}

fn open(dir: &Path) -> KeyStore {
    KeyStore::open(&dir.join("keys.json"), node(dir)).unwrap()
}

fn namespace(id: u64, generation: u64) -> StoredNamespace {
    StoredNamespace { name: format!("tenant-{id}"), id: NamespaceId(id), generation: Generation(generation) }
}

fn put(store: &KeyStore, id: u64, generation: u64) {
    let data = DataKey::new(&mut [(10 * id + generation) as u8; 32]);
    store.put(&namespace(id, generation), &NamespaceKey([id as u8; 32]), &data).unwrap();
}

#[test]
fn keys_outlive_the_process_wrapped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, 1, 1);
    put(&store, 2, 4);
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.namespaces(), [namespace(1, 1), namespace(2, 4)]);
    let secrets = store.secrets(NamespaceId(2)).unwrap().unwrap();
    assert_eq!(secrets.chain, NamespaceKey([2; 32]));
    assert_eq!(secrets.data, Some(DataKey::new(&mut [24; 32])));
    assert!(store.secrets(NamespaceId(3)).unwrap().is_none());
    let text = std::fs::read_to_string(dir.path().join("keys.json")).unwrap();
    assert!(!text.contains(&"02".repeat(32)) && !text.contains(&"18".repeat(32)), "wrapped, not written");
    for name in ["keys.json", "node.key"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_destroyed_generation_is_out_of_the_file_when_the_call_returns() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, 1, 3);
    put(&store, 2, 1);
    let path = dir.path().join("keys.json");
    let wrapped = |id: u64| {
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let keys = json["namespaces"].as_array().unwrap().iter().find(|n| n["id"] == id).unwrap().clone();
        keys["data_key"].as_str().map(str::to_owned)
    };
    let old = wrapped(1).unwrap();
    // Somebody still has the replaced file open: it holds nothing any more.
    let before = std::fs::File::open(&path).unwrap();
    assert!(!store.destroy(NamespaceId(1), Generation(2)).unwrap(), "an older generation is not this one");
    assert!(store.destroy(NamespaceId(1), Generation(3)).unwrap());
    assert!(!std::fs::read_to_string(&path).unwrap().contains(&old));
    let left = std::io::read_to_string(before).unwrap();
    assert!(left.bytes().all(|b| b == 0));
    assert!(wrapped(2).is_some());
    assert!(!store.destroy(NamespaceId(1), Generation(3)).unwrap(), "there is nothing left to destroy");
    let secrets = store.secrets(NamespaceId(1)).unwrap().unwrap();
    assert_eq!(secrets.data, None);
    assert_eq!(secrets.chain, NamespaceKey([1; 32]), "names of the next generation come from it");
    put(&store, 1, 4);
    assert!(open(dir.path()).secrets(NamespaceId(1)).unwrap().unwrap().data.is_some());
    assert!(store.remove(NamespaceId(1)).unwrap());
    assert_eq!(open(dir.path()).namespaces(), [namespace(2, 1)]);
}

#[test]
fn a_node_key_that_others_may_read_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    drop(NodeKey::load_or_create(&path).unwrap());
    for mode in [0o644, 0o640, 0o604] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = NodeKey::load(&path).unwrap_err();
        assert_eq!(error.kind(), "readable");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn a_node_key_is_32_bytes_raw_or_hex() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        NodeKey::load(&path)
    };
    let raw = load(&[0xAB; 32]).unwrap();
    let hex = load(("ab".repeat(32) + "\n").as_bytes()).unwrap();
    let wrapped = raw.wrap(b"whose", &[5; 32]).unwrap();
    assert_eq!(*hex.unwrap(b"whose", &wrapped).unwrap(), [5; 32]);
    assert!(hex.unwrap(b"another's", &wrapped).is_err());
    for wrong in [&b""[..], &[1; 31], &[1; 33], "xy".repeat(32).as_bytes(), &[b'a'; 128]] {
        assert_eq!(load(wrong).unwrap_err().kind(), "form");
    }
}

#[test]
fn another_node_key_or_a_changed_file_is_said_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    put(&open(dir.path()), 1, 1);
    let path = dir.path().join("keys.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let other = Arc::new(NodeKey::load_or_create(&dir.path().join("other.key")).unwrap());
    assert_eq!(KeyStore::open(&path, other).unwrap_err().kind(), "wrapped");
    // A key under another generation or name does not open either.
    for (from, to) in
        [("\"generation\": 1", "\"generation\": 2"), ("tenant-1", "tenant-2"), ("\"id\": 1", "\"id\": 2")]
    {
        assert_ne!(good.replace(from, to), good);
        std::fs::write(&path, good.replace(from, to)).unwrap();
        assert_eq!(KeyStore::open(&path, node(dir.path())).unwrap_err().kind(), "wrapped", "{to}");
    }
    for text in ["", "{}", "{\"version\": 2, \"namespaces\": []}"] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(KeyStore::open(&path, node(dir.path())).unwrap_err().kind(), "form");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
