-- The model router of the REST listener: reads the model out of the path, in the forms that TF Serving's own patterns
-- allow (http_rest_api_handler.cc): /v1/models/NAME[/versions/N|/labels/L] followed by :predict, :classify, :regress,
-- /metadata, or nothing (the model's status). Never waits for a body.

local MISSING_NAME = "Missing model name in request."

-- What may follow the model: true if a version may be written into the path; a status is asked for all versions.
local PINNABLE = {
  [""] = false,
  ["/metadata"] = true,
  [":predict"] = true,
  [":classify"] = true,
  [":regress"] = true,
}

-- The listener's local_reply_config makes `{"error": …}` of it, as of Envoy's own answers.
local function deny(handle, status, message)
  handle:respond({ [":status"] = status }, message)
end

-- Version (a canonical decimal string) or label, and the verb, of what follows the model's name; nil if it is no form
-- of the API.
local function read_rest(rest)
  local head, chosen, verb = match(rest, "^/(%a+)/([^/:]+)(.*)$")
  local version, label = nil, nil
  head = head and lower(head)
  if head == "versions" then
    version = canonical_version(chosen)
    if not version then
      return nil
    end
  elseif head == "labels" then
    label = decode(chosen)
  else
    verb = rest
  end
  verb = lower(verb)
  if PINNABLE[verb] == nil then
    return nil
  end
  return verb, version, label
end

local function route(handle, headers, name, version, label, verb)
  local cluster, shown = "@rest/" .. encode_name(name), printable(name)
  local text = "Servable not found for request: Latest(" .. shown .. ")"
  if verb == "" then -- as in gRPC: the server answers for every version itself
    text = "Could not find any versions of model " .. shown
  elseif version then
    cluster = cluster .. "@" .. version
    text = "Servable not found for request: Specific(" .. shown .. ", " .. version .. ")"
    shown = shown .. " version " .. version
  elseif label then
    text = "Unrecognized servable version label: " .. printable(label)
    headers:replace(LABELLED, "1")
  end
  headers:replace(CLUSTER, cluster)
  headers:replace(NOT_FOUND_TEXT, text)
  headers:replace(MODEL_TEXT, shown)
  if NAMED then
    name_for_log(headers, name, version)
  end
  handle:clearRouteCache()
end

-- The size of a request's body in bytes. Waits for one that is sent without its length; the header map from before is
-- dead then.
local function size_of(handle, headers)
  local told = headers:get("content-length")
  if told or not headers:get("transfer-encoding") and headers:get(":method") ~= "POST" then
    return tonumber(told) or 0, headers
  end
  local size = handle:body(true):length()
  return size, handle:headers()
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local target = headers:get(":path")
  local path, query = match(target, "^([^?]*)(.*)$")
  local prefix, raw, rest = match(path, "^(/[vV]1/[mM][oO][dD][eE][lL][sS]/)([^/:]+)(.*)$")
  local verb, version, label
  if raw then
    verb, version, label = read_rest(rest)
  end
  if not verb then
    if lower(path) == "/v1/models" then
      return deny(handle, "400", MISSING_NAME)
    end
    -- TF Serving's own text; it answers 404 to what lies outside /v1/ and 400 to what it can't read inside.
    local status = match(lower(path), "^/v1/") and "400" or "404"
    return deny(handle, status, "Malformed request: " .. headers:get(":method") .. " " .. path)
  end

  local name = decode(raw)
  if #name > LONGEST_NAME or (label and #label > LONGEST_NAME) then
    return deny(handle, "404", "Servable not found for request: a name is longer than " .. LONGEST_NAME .. " bytes")
  end
  local encoded, chosen = encode_name(name), nil
  local policy = verb ~= "" and policy_of(encoded)
  if policy and policy.largest then
    local size
    size, headers = size_of(handle, headers)
    if size > policy.largest then
      headers:replace(TOO_LARGE, "1")
      return deny(handle, "413", too_large(policy, name, size))
    end
  end
  local ours = PINNABLE[verb] and not version -- which version answers is the operators' choice
  if ours and label then
    chosen = policy and policy.labels[encode_name(label)]
    ours = chosen
  elseif ours then
    chosen = policy and draw(policy, headers) or PINS[encoded]
  end
  if policy then
    handle_as(policy, headers)
  end
  local behind = match(rest, "^/%a+/[^/:]+(.*)$") or rest
  if policy and ours and verb ~= "/metadata" then
    local shadow = shadow_of(policy, chosen, tonumber(headers:get("content-length")) or math.huge)
    if shadow then
      mirror(headers, shadow, "@rest/")
      headers:replace(SHADOW_PATH, prefix .. shadow.segment .. "/versions/" .. shadow.version .. behind .. query)
    end
  end
  if chosen then
    headers:replace(":path", prefix .. raw .. "/versions/" .. chosen .. behind .. query)
    version, label = chosen, nil
  end
  return route(handle, headers, name, version, label, verb)
end
