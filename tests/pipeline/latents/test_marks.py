from pipeline.latents.marks import begin, begun, end


def test_what_has_begun_is_seen_until_it_ends_and_each_dataset_has_a_mark_of_its_own(tmp_path):
    store = str(tmp_path)
    assert begun(store) == set()
    for dataset in ("monday", "tuesday", "monday"):
        begin(store, "one", dataset)
    begin(store, "other", "monday")
    end(store, "one", "monday")
    assert begun(store) == {"one", "other"}
    end(store, "one", "tuesday")
    end(store, "one", "tuesday")
    assert begun(store) == {"other"}
