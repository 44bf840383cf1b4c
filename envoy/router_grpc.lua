-- The model router of the gRPC listener: reads `model_spec` out of the request's body, as the official client sends it,
-- or the model's name out of the header x-model-name (and x-model-version), which spares the body's buffering.

local INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED = "3", "5", "8", "12"

-- Where the first model_spec stands: in field 1 of the message, for MultiInference in field 1 of its first task.
-- pinnable: a second model_spec may be added to it. GetModelStatus answers for all versions, so it never is; of
-- MultiInference the first task's says which servable answers for all of them (multi_inference_helper.cc,
-- GetModelSpecFromRequest). inference: may be mirrored, for it changes nothing.
local INFERENCE = { depth = 1, pinnable = true, inference = true }
local DIRECT = { depth = 1, pinnable = true }
local METHODS = {
  ["/tensorflow.serving.PredictionService/Predict"] = { depth = 1, pinnable = true, inference = true, comparable = true },
  ["/tensorflow.serving.PredictionService/Classify"] = INFERENCE,
  ["/tensorflow.serving.PredictionService/Regress"] = INFERENCE,
  ["/tensorflow.serving.PredictionService/GetModelMetadata"] = DIRECT,
  ["/tensorflow.serving.PredictionService/MultiInference"] = { depth = 2, pinnable = true },
  ["/tensorflow.serving.SessionService/SessionRun"] = DIRECT,
  ["/tensorflow.serving.ModelService/GetModelStatus"] = { depth = 1, status = true },
}

-- The usual request has its whole model_spec in the first bytes.
local HEAD = 128
-- A field's tag and length are two varints of at most ten bytes.
local FIELD_HEAD = 20
-- A name, a version, a signature's name and a label; whoever needs more isn't asking TF Serving.
local LONGEST_SPEC = 65536

local function deny(handle, code, message)
  handle:respond({
    [":status"] = "200",
    ["content-type"] = "application/grpc",
    ["grpc-status"] = code,
    ["grpc-message"] = (gsub(message, "[^ -$&-~]", escape)), -- gRPC's own percent-encoding
  })
end

-- The varint at s[i] and the index after it; nil if s ends first or it is longer than ten bytes. Above 2^53 the number
-- is only near the truth, which is enough for a tag or a length: neither may be that large.
local function varint(s, i)
  local value, scale = 0, 1
  for k = i, i + 9 do
    local b = byte(s, k)
    if not b then
      return nil
    end
    if b < 128 then
      return value + b * scale, k + 1
    end
    value, scale = value + (b - 128) * scale, scale * 128
  end
  return nil
end

-- The int64 varint in s[i..last], exactly, as a decimal string: in two halves of nine decimal digits, which stay exact.
local function exact_varint(s, i, last)
  local high, low = 0, 0
  for k = last, i, -1 do
    low = low * 128 + byte(s, k) % (k == i + 9 and 2 or 128) -- a tenth byte has but one bit that fits into 64
    high = high * 128 + math.floor(low / 1e9)
    low = low % 1e9
  end
  local sign = ""
  if high > 9223372036 or (high == 9223372036 and low > 854775807) then -- two's complement of a negative number
    sign, high, low = "-", 18446744073 - high, 709551616 - low -- its magnitude: 2^64 less the number
    if low < 0 then
      high, low = high - 1, low + 1e9
    end
  end
  if high > 0 then
    return sign .. format("%.0f%09.0f", high, low)
  end
  return sign .. format("%.0f", low)
end

-- google.protobuf.Int64Value; nil if it isn't one. An empty one is 0.
local function read_version(s, i, last)
  local version = "0"
  while i <= last do
    local tag, value, start
    tag, start = varint(s, i)
    if tag ~= 8 then
      return nil
    end
    value, i = varint(s, start)
    if not value or i > last + 1 then
      return nil
    end
    version = i - start < 8 and format("%.0f", value) or exact_varint(s, start, i - 1)
  end
  return version
end

-- tensorflow.serving.ModelSpec: its name, version (a decimal string or nil) and label (or nil); nil if it isn't one.
-- version and version_label are one oneof, so whichever comes last holds.
local function read_spec(s)
  local name, version, label = "", nil, nil
  local i, last = 1, #s
  while i <= last do
    local tag, length
    tag, i = varint(s, i)
    if not tag then
      return nil
    end
    local wire = tag % 8
    if wire == 2 then
      length, i = varint(s, i)
      if not length or i + length > last + 1 then
        return nil
      end
      local stop = i + length - 1
      if tag == 10 then
        name = sub(s, i, stop)
      elseif tag == 18 then
        version, label = read_version(s, i, stop), nil
        if not version then
          return nil
        end
      elseif tag == 34 then
        label, version = sub(s, i, stop), nil
      end
      i = stop + 1
    elseif wire == 0 then
      length, i = varint(s, i)
      if not length then
        return nil
      end
    elseif wire == 1 or wire == 5 then
      i = i + (wire == 1 and 8 or 4)
    else
      return nil
    end
  end
  if i > last + 1 then
    return nil
  end
  return name, version, label
end

-- Walk over the fields of the message in body[5..size) to the first model_spec: its first byte and the byte after it,
-- as offsets; false if there is none, nil if this is no protobuf message. Reads only the heads of the fields, however
-- large the tensors between them are. A second model_spec, which protobuf merges into the first, isn't looked for: the
-- server does read it, so a client that sends one can only lead its own request astray. With depth 2 the task that it
-- stands in, too: the offsets of its field, of its first byte and of the byte after it.
local function find_spec(body, size, depth)
  local at, stop, group, task = 5, size, 0, nil
  while at < stop do
    local head = body:getBytes(at, math.min(FIELD_HEAD, stop - at))
    local tag, i = varint(head, 1)
    if not tag or tag < 8 then
      return nil
    end
    local wire, length = tag % 8, nil
    if wire == 2 then
      length, i = varint(head, i)
      if not length or at + i - 1 + length > stop then
        return nil
      end
      if tag == 10 and group == 0 then
        if depth == 2 then
          task = { field = at, first = at + i - 1, stop = at + i - 1 + length }
        end
        depth, at, stop = depth - 1, at + i - 1, at + i - 1 + length
        if depth == 0 then
          return at, stop, task
        end
      else
        at = at + i - 1 + length
      end
    elseif wire == 0 then
      length, i = varint(head, i)
      if not length then
        return nil
      end
      at = at + i - 1
    elseif wire == 1 or wire == 5 then
      at = at + i - 1 + (wire == 1 and 8 or 4)
    elseif wire == 3 or wire == 4 then -- a group: obsolete, but still legal for a field that the reader doesn't know
      group, at = group + (wire == 3 and 1 or -1), at + i - 1
      if group < 0 then
        return nil
      end
    else
      return nil
    end
  end
  if at > stop or group > 0 then
    return nil
  end
  return false
end

-- The name in the usual shape, a model_spec that comes first and holds a name and at most a signature's name, and the
-- offset of the byte after it; nil for every other shape.
local function usual_name(head)
  local tag, length, name_tag, name_length = byte(head, 6, 9)
  if not name_length or tag ~= 10 or name_tag ~= 10 or length > 127 or name_length > 127 or 7 + length > #head then
    return nil
  end
  local last, after = 7 + length, 10 + name_length
  if after == last + 1 or (after < last and byte(head, after) == 26 and after + 1 + byte(head, after + 1) == last) then
    return sub(head, 10, after - 1), last
  end
  return nil
end

-- The model_spec of a body: name, version, label, the offset of the byte after it, and its task if it stands in one. nil
-- and the reason if there is none that can be read.
local function spec_of(body, size, depth)
  local head = body:getBytes(0, math.min(HEAD, size))
  local flag, a, b, c, d = byte(head, 1, 5)
  if not d or ((a * 256 + b) * 256 + c) * 256 + d + 5 ~= size then
    return nil, "Malformed request: the body is not one gRPC message"
  end
  if flag ~= 0 then
    return nil, "compressed"
  end
  if depth == 1 then
    local name, stop = usual_name(head)
    if name then
      return name, nil, nil, stop
    end
  end
  local start, stop, task = find_spec(body, size, depth)
  if start == false then
    return nil, "Missing ModelSpec"
  end
  if start and stop - start <= LONGEST_SPEC then
    local name, version, label = read_spec(start < stop and body:getBytes(start, stop - start) or "")
    if name then
      return name, version, label, stop, task
    end
  end
  return nil, "Malformed request: its model_spec cannot be read"
end

-- Write a version into the request without touching what the client sent: a second model_spec that holds only the
-- version, right behind the client's own. Protobuf merges the two, and of a oneof the last one holds. A task that they
-- stand in gets a new length.
local function pin(body, size, stop, version, task)
  local value = to_varint(version)
  local added = "\10" .. char(#value + 3) .. "\18" .. char(#value + 1) .. "\8" .. value
  local before
  if task then
    before = body:getBytes(5, task.field - 5) .. "\10" .. to_varint(tostring(task.stop - task.first + #added))
      .. body:getBytes(task.first, stop - task.first)
  else
    before = body:getBytes(5, stop - 5)
  end
  local length = #before + #added + size - stop
  local frame = char(0, math.floor(length / 16777216), math.floor(length / 65536) % 256, math.floor(length / 256) % 256, length % 256)
  local after = stop < size and body:getBytes(stop, size - stop) or ""
  body:setBytes(frame .. before .. added .. after)
end

-- Send the request to its cluster, and leave behind what the local replies need. `plain` is what the client named.
local function route(handle, method, name, encoded, version, label, pinned)
  local headers = handle:headers()
  if method.status then -- the server answers for every version itself
    headers:replace(CLUSTER, encoded)
    headers:replace(NOT_FOUND_TEXT, "Could not find any versions of model " .. printable(name))
  elseif version then
    headers:replace(CLUSTER, encoded .. "@" .. version)
    local shown = printable(name)
    local asked = pinned and "Latest(" .. shown .. ")" or "Specific(" .. shown .. ", " .. version .. ")"
    headers:replace(NOT_FOUND_TEXT, "Servable not found for request: " .. asked)
    headers:replace(MODEL_TEXT, pinned and shown or shown .. " version " .. version)
  else
    headers:replace(CLUSTER, encoded)
    if label then -- only the servers know their labels
      headers:replace(LABELLED, "1")
      headers:replace(NOT_FOUND_TEXT, "Unrecognized servable version label: " .. printable(sub(label, 1, LONGEST_NAME)))
    elseif encoded ~= name then
      headers:replace(NOT_FOUND_TEXT, "Servable not found for request: Latest(" .. printable(name) .. ")")
    end
  end
  if encoded ~= name then
    headers:replace(MODEL_TEXT, printable(name))
  end
  if NAMED then
    name_for_log(headers, name, version)
  end
  handle:clearRouteCache()
end

-- The same for a request whose body was read and for whose model there is a policy.
local function route_by(policy, handle, method, message, name, encoded, version, label, asked)
  local length = message.size - 5
  if policy.largest and length > policy.largest then
    return deny(handle, RESOURCE_EXHAUSTED, too_large(policy, name, length))
  end
  local headers, chosen, pinned = handle:headers(), nil, false
  if asked then
    version, label = asked, nil
    if method.pinnable and (policy.weights or PINS[encoded]) then
      pin(message.body, message.size, message.stop, asked, message.task)
    end
  elseif method.pinnable and not version then
    if label then
      chosen = policy.labels[encode_name(label)]
    else
      chosen = draw(policy, headers) or PINS[encoded]
      pinned = chosen ~= nil
    end
  end
  handle_as(policy, headers)
  if method.inference and not version and (chosen or not label) then -- which version answers is the operators' choice
    local shadow = shadow_of(policy, chosen, length)
    if shadow then
      mirror(headers, shadow, "")
      headers:replace(SHADOW_SPEC, shadow.spec)
    end
    if method.comparable then
      compare(policy, headers, length)
    end
  end
  if chosen then
    pin(message.body, message.size, message.stop, chosen, message.task)
    version, label = chosen, nil
  end
  return route(handle, method, name, encoded, version, label, pinned)
end

local function refuse_unreadable(handle, reason)
  if reason == "compressed" then
    return deny(handle, UNIMPLEMENTED, "A compressed gRPC message cannot be routed by the model that it names: switch "
      .. "the client's compression off, or name the model in the header x-model-name")
  end
  return deny(handle, INVALID_ARGUMENT, reason)
end

local function refuse_name(handle, method, name)
  if name ~= "" then
    return deny(handle, NOT_FOUND, "Servable not found for request: the model's name is longer than " .. LONGEST_NAME .. " bytes")
  elseif method.status then
    return deny(handle, NOT_FOUND, "Could not find any versions of model ")
  end
  return deny(handle, INVALID_ARGUMENT, "ModelSpec has no name specified.")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local method = METHODS[path]
  if not method then
    return deny(handle, UNIMPLEMENTED, "Not proxied here: " .. path .. "; only TF Serving's PredictionService, "
      .. "SessionService and ModelService/GetModelStatus are")
  end

  local named, asked = headers:get("x-model-name"), nil
  if named == "" then
    named = nil
  elseif named then
    local given = headers:get("x-model-version")
    asked = given and canonical_version(given)
    if given and not (asked and #asked < 20) then
      return deny(handle, INVALID_ARGUMENT, "x-model-version is not a version number: " .. given)
    elseif #named > LONGEST_NAME then
      return refuse_name(handle, method, named)
    end
    local encoded = encode_name(named)
    local policy = policy_of(encoded)
    if not (policy and not method.status and policy.reads or method.pinnable and PINS[encoded]) then
      if policy and not method.status then
        handle_as(policy, headers)
      end
      return route(handle, method, named, encoded, asked, nil, false)
    end
  end

  -- Waits until the whole body is here. The header map from before is dead afterwards; route() gets it anew.
  local body = handle:body(true)
  local size = body:length()
  local name, version, label, stop, task = spec_of(body, size, method.depth)
  if not name then
    return refuse_unreadable(handle, version)
  end
  name = named or name
  if name == "" or #name > LONGEST_NAME then
    return refuse_name(handle, method, name)
  end

  local encoded, pinned = encode_name(name), false
  local policy = not method.status and policy_of(encoded)
  if policy then
    local message = { body = body, size = size, stop = stop, task = task }
    return route_by(policy, handle, method, message, name, encoded, version, label, asked)
  elseif asked then -- only for a model whose servers hold several versions: the header's word must reach the server
    pin(body, size, stop, asked, task)
    version, label = asked, nil
  elseif method.pinnable and not version and not label and PINS[encoded] then
    version, pinned = PINS[encoded], true
    pin(body, size, stop, version, task)
  end
  return route(handle, method, name, encoded, version, label, pinned)
end
