//! The contract as its readers see it. A change of the golden file is a change of the contract: fields and
//! methods may be added to `quire.v1`, nothing else. After a change that is meant:
//! `UPDATE_EXPECT=1 cargo test -p quire-proto`.

use std::fmt::Write;

use expect_test::expect_file;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};
use quire_proto::{DESCRIPTOR, PACKAGE};

/// The contract's own files.
fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
    set.file.into_iter().filter(|file| file.package() == PACKAGE).collect()
}

#[test]
fn golden_descriptor() {
    let text: String = files().iter().map(file).collect();
    expect_file!["quire.v1.txt"].assert_eq(&text);
}

fn file(of: &FileDescriptorProto) -> String {
    let mut out = format!("file {} package {} syntax {}\n", of.name(), of.package(), of.syntax());
    of.service.iter().for_each(|service| write_service(&mut out, service));
    of.message_type.iter().for_each(|message| write_message(&mut out, message));
    of.enum_type.iter().for_each(|of| write_enum(&mut out, of));
    out + "\n"
}

fn write_service(out: &mut String, of: &ServiceDescriptorProto) {
    writeln!(out, "\nservice {}", of.name()).unwrap();
    for method in &of.method {
        let stream = |is: bool| if is { "stream " } else { "" };
        let (takes, gives) = (stream(method.client_streaming()), stream(method.server_streaming()));
        let (input, output) = (plain(method.input_type()), plain(method.output_type()));
        writeln!(out, "  {}({takes}{input}) returns ({gives}{output})", method.name()).unwrap();
    }
}

fn write_message(out: &mut String, of: &DescriptorProto) {
    writeln!(out, "\nmessage {}", of.name()).unwrap();
    for field in &of.field {
        let label = match (field.label(), field.proto3_optional(), field.oneof_index) {
            (Label::Repeated, ..) => "repeated ".to_owned(),
            (_, true, _) => "optional ".to_owned(),
            (_, _, Some(at)) => format!("oneof {} ", of.oneof_decl[at as usize].name()),
            _ => String::new(),
        };
        writeln!(out, "  {:>2} {label}{} {}", field.number(), kind(field), field.name()).unwrap();
    }
    for nested in &of.nested_type {
        writeln!(out, "  nested {} {:?}", nested.name(), nested.field.iter().map(kind).collect::<Vec<_>>())
            .unwrap();
    }
}

fn write_enum(out: &mut String, of: &EnumDescriptorProto) {
    writeln!(out, "\nenum {}", of.name()).unwrap();
    of.value.iter().for_each(|value| writeln!(out, "  {:>2} {}", value.number(), value.name()).unwrap());
}

fn kind(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => plain(field.type_name()).to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn plain(name: &str) -> &str {
    name.strip_prefix(".quire.v1.").unwrap_or(name)
}

/// Places of source info: see `SourceCodeInfo.Location.path`.
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const MEMBER: i32 = 2;

#[test]
fn every_field_value_and_method_says_what_it_is() {
    for file in files() {
        let locations = &file.source_code_info.as_ref().unwrap().location;
        let is_told = |path: &[i32]| {
            let at = locations.iter().find(|location| location.path == path);
            at.is_some_and(|location| !location.leading_comments().trim().is_empty())
        };
        let mut untold = Vec::new();
        let mut look = |kind: i32, at: usize, members: Vec<String>| {
            for (i, name) in members.into_iter().enumerate() {
                if !is_told(&[kind, at as i32, MEMBER, i as i32]) {
                    untold.push(name);
                }
            }
        };
        for (at, of) in file.message_type.iter().enumerate() {
            look(MESSAGE, at, of.field.iter().map(|f| format!("{}.{}", of.name(), f.name())).collect());
        }
        for (at, of) in file.enum_type.iter().enumerate() {
            look(ENUM, at, of.value.iter().map(|v| v.name().to_owned()).collect());
        }
        for (at, of) in file.service.iter().enumerate() {
            look(SERVICE, at, of.method.iter().map(|m| format!("{}.{}", of.name(), m.name())).collect());
        }
        assert_eq!(untold, Vec::<String>::new(), "{} without a comment", file.name());
    }
}

#[test]
fn zero_is_never_a_meaning_of_its_own() {
    for of in files().iter().flat_map(|file| &file.enum_type) {
        assert!(of.value[0].name().ends_with("_UNSPECIFIED"), "{}", of.name());
        assert_eq!(of.value[0].number(), 0);
    }
}
